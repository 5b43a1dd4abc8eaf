"""Is what is said of genes and bins true? ``python benchmarks/trust.py`` asks where every bin is known.

Intervals of 90 %, from the estimate and its standard deviation as they are shipped: how often the truth lies within, in
all and by abundance, and how often it would without the calibration at spots left out. And ``reliability``, which knows
the spots alone: does it rank genes as the correlation with the true map does?
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import cases
import numpy as np
import plan
import records
from scipy import stats

from hadmst_sc import metrics, tl
from hadmst_sc.phantom.simulate import simulate
from hadmst_sc.section.observation import Observation, Prediction
from hadmst_sc.trust.intervals import LEVEL, covered, rate_interval

TERTILES = ("rare", "middle", "abundant")
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


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2, help="phantoms per set")
    parser.add_argument("--genes", type=int, default=200, help="of sections of cells; phantoms have 48")
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--only", nargs="+", metavar="GROUP")
    parser.add_argument("--output", type=Path, default=records.RESULTS)
    return parser.parse_args(arguments)


def rates_covered(rates: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """1 where a rate lies in its interval, else 0."""
    low, high = rate_interval(mean, std)
    return ((low <= rates) & (rates <= high)).astype(float)


def truths(options: argparse.Namespace) -> Iterator[Truth]:
    for group, seed, style in cases.phantom_plan(options.seeds):
        made = simulate(seed, style=style, size_um=1920.0, n_genes=48)
        obs = made.observation
        yield Truth(f"phantoms, {group}", f"{style} {seed}", obs, made.rate, obs.inside, "default", rates_covered)
    for group, (section, weights) in CELLS.items():
        obs, maps, cells = cases.pseudo_spots(section, options.genes, 20.0)
        path = str(plan.weights_path(weights))
        yield Truth(group, section, obs, maps, cases.where_known(obs, cells), path, covered)


def tertiles(counts: np.ndarray) -> list[np.ndarray]:
    """Genes (index) by their mean count per spot, in three equal parts."""
    return np.array_split(np.argsort(counts.mean(0), kind="stable"), len(TERTILES))


def measure(truth: Truth, prediction: Prediction) -> dict[str, float]:
    """What is covered, and how well genes are ranked."""
    mean, std, true = (maps[:, truth.where].astype(float) for maps in (prediction.mean, prediction.std, truth.maps))
    of_genes = truth.covers(true, mean, std).mean(1)
    calibration = prediction.provenance["calibration"]
    raw = truth.covers(true, mean, std / calibration["factor"]).mean()
    pcc = metrics.pearson(prediction.mean, truth.maps, truth.where)
    return {
        "genes": len(pcc),
        "covered": of_genes.mean(),
        **{name: of_genes[rows].mean() for name, rows in zip(TERTILES, tertiles(truth.obs.counts), strict=True)},
        "not calibrated": raw,
        "factor": calibration["factor"],
        "at spots left out": calibration["coverage"],
        "rank correlation": stats.spearmanr(prediction.gene_stats["reliability"], pcc).statistic,
    }


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    made = records.provenance(weights="default")
    found = []
    for truth in truths(options):
        if options.only and truth.group not in options.only:
            continue
        prediction = tl.predict(truth.obs, model=truth.weights, n_samples=options.draws)
        values = {name: round(float(value), 3) for name, value in measure(truth, prediction).items()}
        found.append({"group": truth.group, "section": truth.name} | values)
        print(found[-1], flush=True)
    settings = {"n_seeds": options.seeds, "n_draws": options.draws, "level": LEVEL}
    record = {"provenance": made, "settings": settings, "results": found}
    records.save("trust", record, render(record), options.output)


def render(record: dict) -> str:
    """The page: means over the sections of a group."""
    groups = list(dict.fromkeys(row["group"] for row in record["results"]))
    columns = [name for name in record["results"][0] if name not in ("group", "section")]
    rows = []
    for group in groups:
        own = [row for row in record["results"] if row["group"] == group]
        means = [np.mean([row[name] for row in own]) for name in columns]
        rows.append([group, str(len(own)), *(f"{mean:.3g}" for mean in means)])
    intro = (
        f"Share of the bins whose truth lies in the {LEVEL:.0%} interval of its prediction, in all and by thirds of "
        "the genes by abundance; the truth of a phantom is its rate, elsewhere counts of molecules that no spot has "
        "seen. *Not calibrated*: with the spread of the draws as it comes; *factor*: what spots left out make of it; "
        "*at spots left out*: coverage there. *Rank correlation*: Spearman's, over genes, of `reliability` with the "
        "correlation of estimate and truth."
    )
    return "\n\n".join(["# Trust", intro, records.table(["sections", "n", *columns], rows), records.footer(record)])


if __name__ == "__main__":
    main()
