"""The main job on real tissue: ``python benchmarks/mouse_brain.py``.

Superresolves 200 genes of a coronal mouse brain (2,698 Visium spots) on 20 µm bins on the CPU, into a zarr
store; opens the store again, checks it against the spots, and draws known genes. Writes ``results/mouse_brain.json``,
``.md`` and ``.png``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import records
from frame import Measurement, Record, rounded
from scores import of_counts
from spatialdata import SpatialData, read_zarr

from hadmst_sc.io.read import read_observation
from hadmst_sc.section.measurement import degrade, residual
from hadmst_sc.section.observation import OutputNames

sys.path.append(str(Path(__file__).with_name("scale")))
from once import IMAGE_KEY, in_own_process

NAMES = OutputNames("superres")
# Known from any atlas: white matter, dorsal thalamus, choroid plexus, hippocampus, interneurons, striatum, cortex.
LANDMARKS = ("Mbp", "Pcp4", "Ttr", "Hpca", "Prox1", "Sst", "Penk", "Nptxr", "Camk2n1", "Plp1", "Slc17a7")
N_DRAWN = 4


def measure(options: argparse.Namespace) -> Record:
    settings = {"genes": options.genes, "bin_um": options.bin_um, "device": "cpu"}
    job = ["--genes", options.genes, "--bin-um", options.bin_um]
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "section.zarr"
        run = in_own_process([*map(str, job), "--store", str(store)])
        seconds, started = (
            {"load and write the section": run["load_seconds"], "superresolve": run["seconds"]},
            time.time(),
        )
        again = read_zarr(store)
        seconds["open the store again"], started = time.time() - started, time.time()
        options.output.mkdir(parents=True, exist_ok=True)
        drawn = draw(again, options.output / "mouse_brain.png")
        seconds["draw"] = time.time() - started
        seconds |= {f"of which {name}": value for name, value in run["phases"].items()}
        checks = check(again, options.bin_um)
    found = {"seconds": rounded(seconds, 2), "peak_resident_gb": run["peak_gb"], "checks": checks}
    return {"settings": settings} | found | {"genes_drawn": drawn}


def check(sdata: SpatialData, bin_um: float) -> dict[str, Any]:
    """Checks of the stored result, from the stored elements alone."""
    inside, table = np.asarray(sdata.labels[NAMES.bins].data) > 0, sdata.tables[NAMES.table]
    maps = np.where(inside, sdata.images[NAMES.image].data, 0)  # images are NaN outside the tissue
    values = [np.asarray(sdata.images[name].data)[:, inside] for name in (NAMES.image, NAMES.std)]
    obs = read_observation(sdata, IMAGE_KEY, genes=list(table.var_names), bin_um=bin_um)
    measured = degrade(maps, obs.measurement)
    scores = of_counts(measured.T, obs.counts.T, np.ones(len(measured), bool))
    return {
        "genes": len(maps),
        "bins_in_tissue": table.n_obs,
        "values_not_finite_or_negative": sum(int((~(np.isfinite(one) & (one >= 0))).sum()) for one in values),
        "total_in_spots_over_total_counted": round(float(measured.sum() / obs.counts.sum()), 5),
        "median_relative_spot_residual": round(float(np.median(residual(maps, obs.counts, obs.measurement))), 4),
        "mean_pcc_of_spot_sums_with_counts": round(float(scores["pcc"].mean()), 4),
    }


def draw(sdata: SpatialData, path: Path) -> list[str]:
    """Panels of the landmark genes that the panel has; the most abundant where it has none."""
    import matplotlib

    matplotlib.use("agg")
    from hadmst_sc import pl

    names = list(sdata.tables[NAMES.table].var_names)
    genes = ([gene for gene in LANDMARKS if gene in names] or names)[:N_DRAWN]
    axes = pl.superresolve(sdata, genes)
    np.ravel(axes)[0].figure.savefig(path, dpi=64, bbox_inches="tight")  # a megabyte
    return genes


def render(record: Record) -> str:
    settings = record["settings"]
    title = f"{settings['genes']} genes, {settings['bin_um']:g} µm bins, CPU"
    seconds = [[name, f"{value:.1f}"] for name, value in record["seconds"].items()]
    checks = [[name.replace("_", " "), f"{value:g}"] for name, value in record["checks"].items()]
    return records.page(
        record,
        f"# Mouse brain: {title}",
        f"Peak resident memory {record['peak_resident_gb']:.2f} GB.",
        records.table(["phase", "seconds"], seconds),
        records.table(["check", "value"], checks),
        f"![{', '.join(record['genes_drawn'])}](mouse_brain.png)",
    )


MOUSE_BRAIN = Measurement("mouse_brain", __doc__, measure, render)

if __name__ == "__main__":
    MOUSE_BRAIN.main()
