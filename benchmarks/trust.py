"""Is what is said of genes and bins true? ``python benchmarks/trust.py`` asks where every bin is known.

Intervals of 90 %, from the estimate and its standard deviation as they are shipped: how often the truth lies within, in
all and by abundance, and how often it would without the calibration at held-out spots. And ``reliability``, which knows
the spots alone: does it rank genes as the correlation with the true map does?
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import NamedTuple

import cases
import numpy as np
import plan
import records
from frame import Measurement, Record, Row, grouped, introduction, rounded, shown
from scipy import stats

from hadmst_sc import metrics, tl
from hadmst_sc.phantom.simulate import simulate
from hadmst_sc.section.observation import Observation, Prediction
from hadmst_sc.trust.intervals import LEVEL, covered, rate_interval

THIRDS = ("rare", "middle", "abundant")
CELLS = {
    "breast, Xenium": ("xenium_breast_crop", "training/brain_only.safetensors"),
    "mouse brain, Xenium, no image": ("xenium_mouse_brain", "training/breast_only.safetensors"),
}


class Truth(NamedTuple):
    """A section whose bins are known."""

    group: str
    name: str
    obs: Observation
    maps: np.ndarray  # (genes, ny, nx): rates of a phantom, else counts of molecules that no spot has seen
    where: np.ndarray  # (ny, nx) bool
    weights: str  # that have not seen it
    covers: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # truth, mean and std: which are covered


def rates_covered(rates: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """1 where a rate lies in its interval, else 0."""
    low, high = rate_interval(mean, std)
    return ((low <= rates) & (rates <= high)).astype(float)


def truths(options: argparse.Namespace) -> Iterator[Truth]:
    """Phantoms, then sections of cells."""
    for group, seed, style in cases.phantom_plan(options.seeds):
        made = simulate(seed, style=style, size_um=1920.0, n_genes=48)
        obs = made.observation
        yield Truth(f"phantoms, {group}", f"{style} {seed}", obs, made.rate, obs.inside, "default", rates_covered)
    for group, (section, weights) in CELLS.items():
        obs, maps, cells = cases.pseudo_spots(section, options.genes, 20.0)
        path = str(plan.weights_path(weights))
        yield Truth(group, section, obs, maps, cases.where_known(obs, cells), path, covered)


def scores(truth: Truth, prediction: Prediction) -> Row:
    """Coverage of the intervals, and how well genes are ranked."""
    mean, std, true = (maps[:, truth.where].astype(float) for maps in (prediction.mean, prediction.std, truth.maps))
    of_genes = truth.covers(true, mean, std).mean(1)
    thirds = np.array_split(np.argsort(truth.obs.counts.mean(0), kind="stable"), len(THIRDS))  # genes by counts
    calibration = prediction.provenance["calibration"]
    pcc = metrics.pearson(prediction.mean, truth.maps, truth.where)
    return {
        "genes": len(pcc),
        "covered": of_genes.mean(),
        **{name: of_genes[rows].mean() for name, rows in zip(THIRDS, thirds, strict=True)},
        "not calibrated": truth.covers(true, mean, std / calibration["factor"]).mean(),
        "factor": calibration["factor"],
        "at spots left out": calibration["coverage"],
        "rank correlation": stats.spearmanr(prediction.gene_stats["reliability"], pcc).statistic,
    }


def measure(options: argparse.Namespace) -> Record:
    results = shown(
        {"group": truth.group, "section": truth.name}
        | rounded(scores(truth, tl.predict(truth.obs, model=truth.weights, n_samples=options.draws)), 3)
        for truth in truths(options)
        if not options.only or truth.group in options.only
    )
    return {"settings": {"n_seeds": options.seeds, "n_draws": options.draws, "level": LEVEL}, "results": results}


def render(record: Record) -> str:
    """The page: means over the sections of a group."""
    columns = [name for name in record["results"][0] if name not in ("group", "section")]
    rows = [
        [group, str(len(own)), *(f"{np.mean([row[name] for row in own]):.3g}" for name in columns)]
        for (group,), own in grouped(record["results"], "group").items()
    ]
    intro = introduction("trust", record["settings"])
    return records.page(record, "# Trust", intro, records.table(["sections", "n", *columns], rows))


TRUST = Measurement("trust", __doc__, measure, render)

if __name__ == "__main__":
    TRUST.main()
