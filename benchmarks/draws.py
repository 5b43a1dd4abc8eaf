"""Do draws look like tissue? ``python benchmarks/draws.py`` compares draws on phantoms with the true rate.

Per scale, the power of a draw over the truth's (both log1p of the rate over the gene's mean, in tissue); per gene,
its variance over the truth's; how often the truth lies in the central interval of the draws; network evaluations.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import cases
import numpy as np
import records
from frame import Measurement, Record, Row, axes, grouped, introduction, shown
from scipy import ndimage

from hadmst_sc import metrics, tl
from hadmst_sc.phantom.simulate import Phantom, simulate
from hadmst_sc.section.observation import Prediction

SCALES = (2, 4, 8, 16, 32)  # bins: half the wavelength, lower end of each octave
N_DRAWS = 8
LEVELS = (0.5, 0.8, 0.9)
PLACE = ("set", "seed", "evaluations")
CELL = 8  # bins: are means over a neighbourhood right too?


def octaves(maps: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Variance per octave of scale, ``(genes, len(SCALES))``: differences of Gaussians, in tissue."""
    widths = [0.0, *(scale / np.pi for scale in SCALES)]
    weight = [np.maximum(ndimage.gaussian_filter(inside.astype(float), w), 1e-6) if w else inside for w in widths]
    smooth = [
        (ndimage.gaussian_filter(maps * inside, (0, w, w)) if w else maps * inside) / np.maximum(norm, 1e-6)
        for w, norm in zip(widths, weight, strict=True)
    ]
    bands = [(fine - coarse)[:, inside].var(1) for fine, coarse in pairwise(smooth[1:])]
    return np.stack([*bands, smooth[-1][:, inside].var(1)], 1)


def power(drawn: np.ndarray, rate: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Per octave, median over genes of the draws' mean power over the truth's; draws have an axis in front."""
    mean = rate[:, inside].mean(1)[:, None, None]
    truth = np.maximum(octaves(np.log1p(rate / mean), inside), 1e-9)
    return np.median(np.mean([octaves(np.log1p(one / mean), inside) for one in drawn], 0) / truth, 0)


def crps(drawn: np.ndarray, rate: np.ndarray, inside: np.ndarray, cell: int = 1) -> float:
    """Continuous ranked probability score of means over ``cell × cell`` bins, in gene means, averaged over genes."""
    of_cells = (ndimage.uniform_filter(maps, (0,) * (maps.ndim - 2) + (cell, cell)) for maps in (drawn, rate))
    return float((metrics.crps(*of_cells, inside) / rate[:, inside].mean(1)).mean())


def attainable(level: float) -> float:
    """Share of new draws in an interval that few draws span: all ranks among them are equally likely."""
    return level * (N_DRAWS - 1) / (N_DRAWS + 1)


def scores(found: Prediction, phantom: Phantom) -> Row:
    """All scores of the draws on one phantom."""
    rate, inside, drawn = phantom.rate, phantom.observation.inside, found.draws
    mean = rate[:, inside].mean(1)[:, None, None]
    variance = np.log1p(drawn / mean)[..., inside].var(-1).mean(0) / np.log1p(rate / mean)[:, inside].var(-1)
    values = {f"power, {scale} bins": ratio for scale, ratio in zip(SCALES, power(drawn, rate, inside), strict=True)}
    values["variance"] = np.median(variance)
    for level in LEVELS:
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
        covered = metrics.coverage(low, high, rate, inside).mean()
        values[f"cover {level:.0%} ({attainable(level):.2f})"] = covered
    values["PCC of a draw"] = metrics.pearson(drawn[0], rate, inside).mean()
    values[f"PCC of the mean of {N_DRAWS}"] = metrics.pearson(drawn.mean(0), rate, inside).mean()
    values["CRPS"] = crps(drawn, rate, inside)
    values[f"CRPS, {CELL} bins"] = crps(drawn, rate, inside, CELL)
    values["spread / error"] = np.mean(metrics.spread_over_error(found.std, found.mean, rate, inside))
    return {name: float(value) for name, value in values.items()}


def measure(options: argparse.Namespace) -> Record:
    results = [
        {"set": name, "evaluations": steps}
        | {key: round(float(np.mean([row[key] for row in rows])), 3) for key in rows[0] if key not in PLACE}
        for (name, steps), rows in grouped(shown(_rows(options)), "set", "evaluations").items()
    ]
    settings = {"n_seeds": options.seeds, "n_genes": options.genes, "n_draws": N_DRAWS}
    return {"settings": settings, "results": results}


def _rows(options: argparse.Namespace) -> Iterator[Row]:
    how = {"model": options.weights, "n_samples": N_DRAWS, "keep_draws": True}
    for name, seed, style in cases.phantom_plan(options.seeds):
        phantom = simulate(seed, style=style, size_um=1920.0, n_genes=options.genes)
        for n_steps in options.steps:
            found = tl.predict(phantom.observation, n_steps=n_steps, **how)
            yield dict(zip(PLACE, (name, seed, n_steps), strict=True)) | scores(found, phantom)


def render(record: Record) -> str:
    """The page."""
    columns = list(record["results"][0])
    rows = [[str(row[column]) for column in columns] for row in record["results"]]
    intro = introduction("draws", record["settings"] | {"cell": CELL})
    picture = "![accuracy of draws against evaluations](draws.png)"
    return records.page(record, "# Draws on phantoms", intro, records.table(columns, rows), picture)


def draw(record: Record, path: Path) -> None:
    """Scores against the number of evaluations."""
    names = ("PCC of a draw", f"PCC of the mean of {N_DRAWS}", "CRPS", f"cover 80% ({attainable(0.8):.2f})")
    figure, found = axes(len(names), size=(2.6, 2.6))
    for axis, score in zip(found[0], names, strict=True):
        for (name,), own in grouped(record["results"], "set").items():
            axis.semilogx([row["evaluations"] for row in own], [row[score] for row in own], "o-", label=name)
        axis.set_title(score, fontsize=9)
        axis.set_xlabel("evaluations per draw")
    found[0, 0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=80)


DRAWS = Measurement("draws", __doc__, measure, render, draw)

if __name__ == "__main__":
    DRAWS.main()
