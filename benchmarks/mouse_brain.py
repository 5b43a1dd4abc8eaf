"""The main job on real tissue: ``python benchmarks/mouse_brain.py``.

Superresolves 200 genes of a coronal mouse brain (2,698 Visium spots) on 20 µm bins with 4 draws on the CPU, into a zarr
store; opens the store again, checks it against the spots, and draws known genes. Writes ``results/mouse_brain.json``,
``.md`` and ``.png``.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import records
from scores import of_counts
from spatialdata import SpatialData, read_zarr

from hadmst_sc.section.measurement import degrade, residual
from hadmst_sc.section.observation import PROVENANCE_KEY, Observation, OutputNames

SECTION = "visium_mouse_brain"
IMAGE_KEY = f"{SECTION}_full_image"
KEY = "superres"
# Known from any atlas: white matter, dorsal thalamus, choroid plexus, hippocampus, interneurons, striatum, cortex.
LANDMARKS = ("Mbp", "Pcp4", "Ttr", "Hpca", "Prox1", "Sst", "Penk", "Nptxr", "Camk2n1", "Plp1", "Slc17a7")
N_DRAWN = 4


@contextmanager
def phase(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the wall seconds of the block to ``seconds[name]`` and say so."""
    started = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - started, 2)
    print(f"{name}: {seconds[name]:.1f} s", flush=True)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genes", type=int, default=200)
    parser.add_argument("--bin-um", type=float, default=20.0)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--store", type=Path, help="keep the zarr store here; a temporary folder otherwise")
    parser.add_argument("--output", type=Path, default=records.RESULTS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.store and options.store.exists():
        raise SystemExit(f"`--store` needs a new path, but {options.store} exists. Remove it or name another.")
    folder = Path(tempfile.mkdtemp()) if options.store is None else None
    try:
        run(options, options.store or folder / "section.zarr")
    finally:
        if folder:
            shutil.rmtree(folder)


def run(options: argparse.Namespace, store: Path) -> None:
    from hadmst_sc import datasets, tl

    made, seconds = records.provenance(weights="default"), dict[str, float]()  # before the picture changes the checkout
    with phase(seconds, "load and write the section"):
        datasets.load(SECTION).write(store)
        sdata = read_zarr(store)
    with phase(seconds, "superresolve"):
        tl.superresolve(
            sdata,
            IMAGE_KEY,
            genes=options.genes,
            bin_um=options.bin_um,
            n_samples=options.samples,
            device="cpu",
            key_added=KEY,
        )
    peak = records.peak_gb()
    with phase(seconds, "open the store again"):
        again = read_zarr(store)
    checks = check(again, options)
    options.output.mkdir(parents=True, exist_ok=True)
    with phase(seconds, "draw"):
        drawn = draw(again, options.output / "mouse_brain.png")
    record = {
        "provenance": made,
        "settings": {"genes": options.genes, "bin_um": options.bin_um, "n_samples": options.samples, "device": "cpu"},
        "seconds": seconds | recorded_phases(again),
        "peak_resident_gb": round(peak, 3),
        "checks": checks,
        "genes_drawn": drawn,
    }
    records.save("mouse_brain", record, render(record), options.output)


def recorded_phases(sdata: SpatialData) -> dict[str, float]:
    """Seconds per phase from the result's own provenance."""
    made = sdata.tables[OutputNames(KEY).table].uns[PROVENANCE_KEY]
    found = {name.removeprefix("seconds_"): value for name, value in made.items() if name.startswith("seconds_")}
    return {f"of which {name}": round(float(value), 2) for name, value in found.items()}


def check(sdata: SpatialData, options: argparse.Namespace) -> dict[str, float]:
    """What must hold of the stored result, from the stored elements alone."""
    inside = np.asarray(sdata.labels[OutputNames(KEY).bins].data) > 0
    maps = np.where(inside, sdata.images[KEY].data, 0)  # images are NaN outside the tissue
    names = [name for name in (KEY, OutputNames(KEY).std) if name in sdata.images]  # no std without draws
    table = sdata.tables[OutputNames(KEY).table]
    obs = observation(sdata, list(table.var_names), options.bin_um)
    measured = degrade(maps, obs.measurement)
    misfit = residual(maps, obs.counts, obs.measurement)
    scores = of_counts(measured.T, obs.counts.T, np.ones(len(measured), bool))
    return {
        "genes": len(maps),
        "bins_in_tissue": table.n_obs,
        "values_not_finite_or_negative": sum(
            _invalid(np.asarray(sdata.images[name].data)[:, inside]) for name in names
        ),
        "total_in_spots_over_total_counted": round(float(measured.sum() / obs.counts.sum()), 5),
        "median_relative_spot_residual": round(float(np.median(misfit)), 4),
        "mean_pcc_of_spot_sums_with_counts": round(float(scores["pcc"].mean()), 4),
    }


def _invalid(maps: np.ndarray) -> int:
    return int((~(np.isfinite(maps) & (maps >= 0))).sum())


def observation(sdata: SpatialData, genes: list[str], bin_um: float) -> Observation:
    """The same reading as the run's, to have ``A`` and the counts."""
    from hadmst_sc.io.read import read_observation

    return read_observation(sdata, IMAGE_KEY, genes=genes, bin_um=bin_um)


def draw(sdata: SpatialData, path: Path) -> list[str]:
    """Panels of the landmark genes that the panel has; the most abundant where it has none."""
    import matplotlib

    matplotlib.use("agg")
    from hadmst_sc import pl

    names = list(sdata.tables[OutputNames(KEY).table].var_names)
    genes = ([gene for gene in LANDMARKS if gene in names] or names)[:N_DRAWN]
    axes = pl.superresolve(sdata, genes, key_added=KEY)
    np.ravel(axes)[0].figure.savefig(path, dpi=64, bbox_inches="tight")  # a megabyte
    return genes


def render(record: dict) -> str:
    made, settings = record["seconds"], record["settings"]
    seconds = records.table(["phase", "seconds"], [[name, f"{value:.1f}"] for name, value in made.items()])
    checks = records.table(
        ["check", "value"], [[name.replace("_", " "), f"{v:g}"] for name, v in record["checks"].items()]
    )
    title = f"{settings['genes']} genes, {settings['bin_um']:g} µm bins, {settings['n_samples']} draws, CPU"
    return "\n\n".join(
        [
            f"# Mouse brain: {title}",
            f"Peak resident memory {record['peak_resident_gb']:.2f} GB.",
            seconds,
            checks,
            f"![{', '.join(record['genes_drawn'])}](mouse_brain.png)",
            records.footer(record),
        ]
    )


if __name__ == "__main__":
    main()
