"""Laws of ``tests/benchmarks/test_exactness.py`` on a large phantom, and the seconds of the closed form.

``python benchmarks/laws.py`` exits with status 1 where a law does not hold.
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np
import records
from cases.case import abundant
from frame import Measurement, Record, shown

from hadmst_sc.datasets.public import load, observe
from hadmst_sc.distillation.genes import distill
from hadmst_sc.section.grid import Grid
from hadmst_sc.section.measurement import discs
from hadmst_sc.section.observation import Observation

sys.path.append(str(records.ROOT / "tests" / "benchmarks"))
from test_exactness import DRAWS, LAWS, SEED, TILED, UNTILED, Law, section

BRAIN = "visium_mouse_brain"


def distill_seconds(_: Observation) -> float:
    """Closed form on the mouse brain: 2,698 spots × 200 genes."""
    return _seconds(observe(BRAIN, genes=abundant(load(BRAIN).tables["table"], 200), bin_um=20.0))


def distill_large_seconds(_: Observation) -> float:
    """Closed form on 5,041 spots × 2,000 genes of noise around forty random programmes: the cost, not the quality."""
    rng = np.random.default_rng(SEED)
    side, n_genes, shape = 71, 2_000, (360, 360)
    centres = (np.indices((side, side)).reshape(2, -1).T + 0.5) * 5
    counts = rng.poisson(rng.gamma(0.5, 1, (side**2, 40)) @ rng.gamma(0.2, 1, (40, n_genes))).astype(np.float32)
    he = rng.integers(0, 256, (3, *(4 * n for n in shape)), np.uint8)
    genes, spots = (tuple(map(str, range(n))) for n in (n_genes, side**2))
    grid = Grid(shape, 20.0, 4.0)
    return _seconds(Observation(grid, he, 5.0, discs(centres, 2.75, shape), counts, genes, spots, np.ones(shape, bool)))


def _seconds(obs: Observation) -> float:
    started = time.perf_counter()
    distill(obs)
    return time.perf_counter() - started


ALL = LAWS | {
    "distill, 2,698 spots × 200 genes": Law(distill_seconds, 60.0, "s"),
    "distill, 5,041 spots × 2,000 genes": Law(distill_large_seconds, 300.0, "s"),
}


def measure(options: argparse.Namespace) -> Record:
    if unknown := set(options.laws) - set(ALL):
        raise SystemExit(f"`--laws` needs names of {list(ALL)}, but has {sorted(unknown)}.")
    results = shown(
        {"law": name, "value": float(f"{ALL[name].measure(section()):.3g}")}
        | {"limit": ALL[name].limit, "unit": ALL[name].unit}
        for name in options.laws or ALL
    )
    return {"settings": {"seed": SEED, "windows": [TILED, UNTILED], **DRAWS}, "results": results}


def render(record: Record) -> str:
    rows = [
        [r["law"], f"{r['value']:.3g}", f"{r['limit']:g}", r["unit"], "yes" if r["value"] <= r["limit"] else "NO"]
        for r in record["results"]
    ]
    return records.page(record, "# Laws", records.table(["law", "measured", "at most", "unit", "holds"], rows))


LAWS_TABLE = Measurement("laws", __doc__, measure, render)

if __name__ == "__main__":
    found = LAWS_TABLE.main()
    if any(one["value"] > one["limit"] for one in found["results"]):
        raise SystemExit(1)
