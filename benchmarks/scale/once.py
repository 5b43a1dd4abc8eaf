"""One run in a process of its own, as its peak memory is; prints what it cost as a line of JSON."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import peers
import records
from frame import with_weights
from sections import NUCLEI, SECTION, mirrored, with_nuclei
from spatialdata import read_zarr

from hadmst_sc import datasets, tl
from hadmst_sc.io.read import read_observation
from hadmst_sc.models import HadmstModel, HEStudent
from hadmst_sc.models.diffusion import ModelSpec
from hadmst_sc.models.weights import load_model
from hadmst_sc.section.features import N_BASE
from hadmst_sc.section.observation import PROVENANCE_KEY

IMAGE_KEY = f"{SECTION}_full_image"
# What processes of a cluster do beside the work, 10 to 100 times a second, took some 7 % of the time of two workers on
# two cores: see docs/how_to/large_slides.md.
HOUSEKEEPING = {
    "distributed.worker.profile.enabled": False,
    "distributed.worker.memory.monitor-interval": "1s",
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "5s",
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=int, default=1)
    parser.add_argument("--genes", type=int, default=200)
    parser.add_argument("--metagenes", type=int)
    parser.add_argument("--mean", action="store_true", help="without the standard deviation")
    parser.add_argument("--cells", type=int, default=0, help="so many nuclei are given")
    parser.add_argument("--bin-um", type=float, default=20.0)
    parser.add_argument("--workers", type=int, default=0, help="Dask workers of one thread; 0 computes here")
    parser.add_argument("--peer", choices=list(peers.PEERS), help="this published tool in place of ours")
    parser.add_argument("--maps", type=Path, help="keep the maps in this file")
    parser.add_argument("--store", type=Path, help="take the section with all its genes, and keep its store here")
    return parser.parse_args(arguments)


def in_own_process(arguments: list[str]) -> dict[str, Any]:
    """Cost of a run with these arguments."""
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


SPENT = {"seconds": 0.0, "evaluations": 0}  # inside the network of this process


def timed(plain: Callable[..., Any]) -> Callable[..., Any]:
    """A method whose seconds are added up, and for :meth:`HadmstModel.network` how often genes went through it."""

    def call(self: Any, given: Any, *more: Any) -> Any:
        started = time.perf_counter()
        found = plain(self, given, *more)
        SPENT["seconds"] += time.perf_counter() - started
        SPENT["evaluations"] += len(given) if plain is HadmstModel.network else 0
        return found

    return call


class TimedStudent(HEStudent):
    """A student that looks at the clock."""

    read = timed(HEStudent.read)


class TimedModel(HadmstModel):
    """A model that looks at the clock, where it reads a slide, prepares a gene and evaluates it."""

    read, condition, network = timed(HadmstModel.read), timed(HadmstModel.condition), timed(HadmstModel.network)

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.student = TimedStudent(N_BASE, spec.student, *spec.student_branches)


def cluster(workers: int) -> Any:
    """A client of so many workers of one thread each, or nothing."""
    if not workers:
        return nullcontext()
    import dask
    from distributed import Client

    with dask.config.set(HOUSEKEEPING):
        return Client(n_workers=workers, threads_per_worker=1, dashboard_address=None)  # its cluster ends with it


def run_peer(options: argparse.Namespace) -> dict[str, Any]:
    """A published tool on the same spots, image and grid: from arrays to maps, without making its environment."""
    section, peer = mirrored(options.tiles, options.genes), peers.PEERS[options.peer]
    obs = read_observation(section, IMAGE_KEY, genes=options.genes, bin_um=options.bin_um)
    peers.environment(peer)
    started = time.perf_counter()
    peers.run(peer, obs)
    size = {"bins": int(obs.inside.sum()), "spots": len(obs.spots), "genes": len(obs.genes)}
    return size | cost(time.perf_counter() - started)


def cost(seconds: float) -> dict[str, float]:
    """Seconds of a run, and what this process has taken so far."""
    network = round(SPENT["seconds"], 2)
    return {"seconds": round(seconds, 2), "peak_gb": round(records.peak_gb(), 3), "network_seconds": network}


def run(options: argparse.Namespace, store: Path) -> dict[str, Any]:
    """Ours, backed by a store."""
    started = time.perf_counter()
    section = datasets.load(SECTION) if options.store else mirrored(options.tiles, options.genes)
    if options.cells:
        with_nuclei(section, options.cells)
    section.write(store)
    del section
    sdata = read_zarr(store)
    load_seconds = round(time.perf_counter() - started, 2)
    with cluster(options.workers) as client:
        if client is not None:
            client.wait_for_workers(options.workers)
        model = (
            "default" if options.workers else with_weights(TimedModel, load_model("default"))
        )  # workers have clocks of their own
        started = time.perf_counter()
        tl.superresolve(
            sdata,
            IMAGE_KEY,
            model=model,
            genes=options.genes,
            bin_um=options.bin_um,
            with_std=not options.mean,
            n_metagenes=options.metagenes,
            cells_key=NUCLEI if options.cells else None,
            device="cpu",
            client=client,
            show_progress_bar=False,
        )
        found = cost(time.perf_counter() - started)
    table = sdata["superres_table"]
    made = table.uns[PROVENANCE_KEY]
    if options.maps:
        np.save(options.maps, np.nan_to_num(sdata["superres"].data))  # NaN outside the tissue
    phases = {k.removeprefix("seconds_"): round(v, 2) for k, v in made.items() if k.startswith("seconds_")}
    return {"bins": table.n_obs, "spots": sdata["table"].n_obs, "genes": table.n_vars, "load_seconds": load_seconds} | (
        found | {"evaluations": SPENT["evaluations"], "metagene_loss": made["metagene_loss"], "phases": phases}
    )


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory(prefix="hadmst-scale-") as folder:
        store = options.store or Path(folder) / "section.zarr"
        print(json.dumps(run_peer(options) if options.peer else run(options, store)))


if __name__ == "__main__":
    main()
