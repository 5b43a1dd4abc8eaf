"""All that a GPU must show, in at most eight minutes: ``python benchmarks/gpu.py``.

Four parts, each kept as soon as it is done: numbers against those of the CPU, seconds and peak memory of 200 and of
18,000 genes on a whole slide, and seconds of a training step. The slide is simulated, so that the script needs no file
but the checkout. Without a GPU it runs as well, with ``--device cpu --spots 200 --genes 20 --steps 4``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import records
import torch

from hadmst_sc.phantom.simulate import simulate
from hadmst_sc.section.observation import Observation
from hadmst_sc.tl import predict
from hadmst_sc.train import TrainConfig, train
from hadmst_sc.train.config import BankConfig, StudentConfig
from hadmst_sc.train.loop import read_log

SEED = 990_000
PITCH_UM, BIN_UM = 100.0, 20.0
N_DRAWN = 200  # genes of the phantom; more are thinned copies of these
STEPS = 100
Part = Callable[[], dict[str, Any]]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--spots", type=int, default=2700)
    parser.add_argument("--genes", type=int, nargs="+", default=[200, 18_000])
    parser.add_argument("--steps", type=int, default=STEPS, help="of the training run")
    parser.add_argument("--minutes", type=float, default=8.0, help="no part begins later than this")
    parser.add_argument("--output", type=Path, default=records.RESULTS)
    return parser.parse_args(arguments)


def slide(n_spots: int, n_genes: int) -> Observation:
    """A phantom of so many spots, with genes whose counts are binomial shares of those of ``N_DRAWN`` genes."""
    # Spots of a triangular lattice have an area of sqrt(3) / 2 square pitches each.
    size_um = round(np.sqrt(n_spots * 3**0.5 / 2) * PITCH_UM / BIN_UM) * BIN_UM
    n_drawn = min(n_genes, N_DRAWN)
    obs = simulate(SEED, size_um=size_um, bin_um=BIN_UM, pitch_um=PITCH_UM, n_genes=n_drawn).observation
    if n_genes == n_drawn:
        return obs
    rng, source = np.random.default_rng(SEED), np.arange(n_genes) % n_drawn
    share = np.where(np.arange(n_genes) < n_drawn, 1.0, rng.uniform(0.2, 0.9, n_genes))
    counts = rng.binomial(np.round(obs.counts[:, source]).astype(int), share).astype(obs.counts.dtype)
    return replace(obs, genes=tuple(f"gene_{i:05d}" for i in range(n_genes)), counts=counts)


def same_numbers(device: str) -> dict[str, Any]:
    """Largest differences of estimate and standard deviation from those of the CPU, relative to the largest value."""
    obs = simulate(SEED, size_um=960.0, n_genes=8).observation
    cpu, here = (predict(obs, n_samples=4, device=one) for one in ("cpu", device))
    found = {}
    for name in ("mean", "std"):
        a, b = (np.asarray(getattr(one, name)) for one in (cpu, here))
        found[f"largest difference of {name}"] = float(np.abs(a - b).max() / a.max())
    return found


def whole_slide(n_spots: int, n_genes: int, device: str) -> dict[str, Any]:
    """Seconds, seconds of each stage and peak memory of a run with standard deviations, its maps dropped."""
    obs = slide(n_spots, n_genes)
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    found = predict(obs, device=device)
    seconds = time.perf_counter() - started
    stages = {k.removeprefix("seconds_"): round(v, 2) for k, v in found.provenance.items() if k.startswith("seconds_")}
    memory = {"peak_gpu_gb": torch.cuda.max_memory_allocated() / 1e9} if on_gpu else {}
    return (
        {"seconds": seconds, "peak_gb": records.peak_gb()} | memory | {"bins": int(obs.inside.sum()), "stages": stages}
    )


def training_step(steps: int, device: str) -> dict[str, Any]:
    """Seconds of a step from the bundled weights on; the first quarter of the steps warms up."""
    accelerator = {"cuda": "gpu"}.get(torch.device(device).type, "cpu")
    every = max(1, steps // 4)
    bank, student = BankConfig(n_phantoms=4, start_with=4, n_genes=16), StudentConfig(n_phantoms=1, steps=1)
    how = {"bank": bank, "student": student, "accelerator": accelerator, "start_from": "default"}
    with tempfile.TemporaryDirectory() as folder:
        train(TrainConfig(steps=4 * every, log_every=every, checkpoint_every=4 * every, **how), output=folder)
        log = read_log(folder)
    return {"seconds of a step": (log[-1]["seconds"] - log[0]["seconds"]) / (log[-1]["step"] - log[0]["step"])}


def parts(options: argparse.Namespace) -> Iterator[tuple[str, Part]]:
    yield "same numbers as on the CPU", partial(same_numbers, options.device)
    yield "training step", partial(training_step, options.steps, options.device)
    for n_genes in options.genes:
        yield (
            f"{n_genes:,} genes, {options.spots:,} spots",
            partial(whole_slide, options.spots, n_genes, options.device),
        )


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    options = parse(arguments)
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"`--device {options.device}` needs a CUDA device, but there is none. Try `--device cpu`.")
    name = torch.cuda.get_device_name(options.device) if torch.cuda.is_available() else "no GPU"
    record: dict[str, Any] = {
        "provenance": records.provenance(weights="default"),
        "device": options.device,
        "gpu": name,
    }
    record["parts"] = {}
    started = time.perf_counter()
    for title, part in parts(options):
        late = time.perf_counter() - started > 60 * options.minutes
        try:
            record["parts"][title] = {"skipped": f"begun later than {options.minutes:g} min"} if late else part()
        except Exception as error:  # noqa: BLE001 - the parts after it are worth their minutes
            record["parts"][title] = {"failed": f"{type(error).__name__}: {error}"[:600]}
        records.save("gpu", record, render(record), options.output)
    return record


def render(record: dict[str, Any]) -> str:
    """The page."""
    rows = []
    for title, found in record["parts"].items():
        shown = [
            f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {json.dumps(value)}"
            for key, value in found.items()
        ]
        rows.append([title, "; ".join(shown).replace('"', "")])
    return records.page(
        record,
        f"# What a GPU shows: {record['gpu']}, device {record['device']}",
        records.table(["part", "found"], rows),
    )


if __name__ == "__main__":
    main()
