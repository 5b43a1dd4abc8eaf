"""One run in a process of its own, as its peak memory is; prints what it cost as a line of JSON."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import peers
import records
from sections import SECTION, mirrored
from spatialdata import read_zarr

from hadmst_sc import tl
from hadmst_sc.io.read import read_observation
from hadmst_sc.models import HadmstModel, HEStudent
from hadmst_sc.section.observation import PROVENANCE_KEY

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
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--bin-um", type=float, default=20.0)
    parser.add_argument("--workers", type=int, default=0, help="Dask workers of one thread; 0 computes here")
    parser.add_argument("--peer", choices=list(peers.PEERS), help="this published tool in place of ours")
    parser.add_argument("--maps", type=Path, help="keep the maps in this file")
    return parser.parse_args(arguments)


@contextmanager
def network_clock() -> Iterator[dict[str, float]]:
    """Seconds inside the network and how often genes went through it, in this process."""
    spent = {"seconds": 0.0, "evaluations": 0}

    def timed(owner: type, name: str) -> Any:
        plain = getattr(owner, name)

        def call(self: Any, given: Any, *more: Any) -> Any:
            started = time.perf_counter()
            found = plain(self, given, *more)
            spent["seconds"] += time.perf_counter() - started
            spent["evaluations"] += len(given) if name == "denoise" else 0
            return found

        return mock.patch.object(owner, name, call)

    with ExitStack() as patches:
        # The student's features and those of the whole slide, then the first layer and the rest of it for each gene.
        patches.enter_context(timed(HEStudent, "read"))
        for name in ("read", "condition", "denoise"):
            patches.enter_context(timed(HadmstModel, name))
        yield spent


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
    section = mirrored(options.tiles, options.genes)
    obs = read_observation(section, f"{SECTION}_full_image", genes=options.genes, bin_um=options.bin_um)
    peers.environment(peers.PEERS[options.peer])
    started = time.perf_counter()
    peers.run(peers.PEERS[options.peer], obs)
    seconds = time.perf_counter() - started
    return {
        "bins": int(obs.inside.sum()),
        "spots": len(obs.spots),
        "genes": len(obs.genes),
        "seconds": round(seconds, 2),
        "peak_gb": round(records.peak_gb(), 3),
        "network_seconds": 0.0,
    }


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    mirrored(options.tiles, options.genes).write(folder / "section.zarr")
    sdata = read_zarr(folder / "section.zarr")
    with cluster(options.workers) as client, network_clock() as network:
        if client is not None:
            client.wait_for_workers(options.workers)
        started = time.perf_counter()
        tl.superresolve(
            sdata,
            f"{SECTION}_full_image",
            genes=options.genes,
            bin_um=options.bin_um,
            n_samples=options.samples,
            n_steps=options.steps,
            n_metagenes=options.metagenes,
            device="cpu",
            client=client,
            show_progress_bar=False,
        )
        seconds = time.perf_counter() - started
    table = sdata["superres_table"]
    made = table.uns[PROVENANCE_KEY]
    if options.maps:
        np.save(options.maps, np.nan_to_num(sdata["superres"].data))  # NaN outside the tissue
    return {
        "bins": table.n_obs,
        "spots": sdata["table"].n_obs,
        "genes": table.n_vars,
        "seconds": round(seconds, 2),
        "peak_gb": round(records.peak_gb(), 3),
        "network_seconds": round(network["seconds"], 2),
        "evaluations": network["evaluations"],
        "metagene_loss": made["metagene_loss"],
        "phases": {k.removeprefix("seconds_"): round(v, 2) for k, v in made.items() if k.startswith("seconds_")},
    }


def main() -> None:
    options = parse()
    folder = Path(tempfile.mkdtemp(prefix="hadmst-scale-"))
    try:
        found = run_peer(options) if options.peer else run(options, folder)
    finally:
        shutil.rmtree(folder)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
