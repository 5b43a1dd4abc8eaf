"""Do draws look like tissue? ``python benchmarks/draws.py`` compares draws on phantoms with the true rate.

Per scale, the power of a draw over the truth's (both log1p of the rate over the gene's mean, in tissue); per gene,
its variance over the truth's; how often the truth lies in the central interval of the draws; network evaluations.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import cases
import numpy as np
import records
from scipy import ndimage

from hadmst_sc import metrics, tl
from hadmst_sc.phantom.simulate import simulate

SCALES = (2, 4, 8, 16, 32)  # bins: half the wavelength, lower end of each octave
N_DRAWS = 8
STEPS = (1, 2, 4, 32)
LEVELS = (0.5, 0.8, 0.9)
CELL = 8  # bins: are means over a neighbourhood right too?


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2, help="phantoms per set")
    parser.add_argument("--genes", type=int, default=8)
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--weights", default="default")
    parser.add_argument("--output", type=Path, default=records.RESULTS)
    return parser.parse_args(arguments)


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
    """How often a new draw lies in an interval that few draws span: all ranks among them are equally likely."""
    return level * (N_DRAWS - 1) / (N_DRAWS + 1)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    made = records.provenance(weights=options.weights)
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for name, seed, style in cases.phantom_plan(options.seeds):
        phantom = simulate(seed, style=style, size_um=1920.0, n_genes=options.genes)
        inside = phantom.observation.inside
        mean = phantom.rate[:, inside].mean(1)[:, None, None]
        truth = np.log1p(phantom.rate / mean)
        for n_steps in options.steps:
            prediction = tl.predict(
                phantom.observation, model=options.weights, n_samples=N_DRAWS, n_steps=n_steps, keep_draws=True
            )
            drawn = np.log1p(prediction.draws / mean)
            by_scale = zip(SCALES, power(prediction.draws, phantom.rate, inside), strict=True)
            variance = drawn[..., inside].var(-1).mean(0) / truth[:, inside].var(-1)
            scores = {f"power, {scale} bins": float(ratio) for scale, ratio in by_scale}
            scores["variance"] = float(np.median(variance))
            for level in LEVELS:
                low, high = np.quantile(prediction.draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
                scores[f"cover {level:.0%} ({attainable(level):.2f})"] = float(
                    metrics.coverage(low, high, phantom.rate, inside).mean()
                )
            scores["PCC of a draw"] = float(metrics.pearson(prediction.draws[0], phantom.rate, inside).mean())
            of_mean = metrics.pearson(prediction.draws.mean(0), phantom.rate, inside)
            scores[f"PCC of the mean of {N_DRAWS}"] = float(of_mean.mean())
            scores["CRPS"] = crps(prediction.draws, phantom.rate, inside)
            scores[f"CRPS, {CELL} bins"] = crps(prediction.draws, phantom.rate, inside, CELL)
            scores["spread / error"] = float(
                np.mean(metrics.spread_over_error(prediction.std, prediction.mean, phantom.rate, inside))
            )
            found.setdefault((name, n_steps), []).append(scores)
            print(name, seed, n_steps, {k: round(v, 3) for k, v in scores.items()}, flush=True)
    results = [
        {"set": name, "evaluations": steps} | {k: round(float(np.mean([s[k] for s in scores])), 3) for k in scores[0]}
        for (name, steps), scores in found.items()
    ]
    settings = {"n_seeds": options.seeds, "n_genes": options.genes, "n_draws": N_DRAWS}
    record = {"provenance": made, "settings": settings, "results": results}
    records.save("draws", record, render(record), options.output)
    draw(results, options.output / "draws.png")


def render(record: dict) -> str:
    """The page."""
    columns = list(record["results"][0])
    rows = [[str(row[column]) for column in columns] for row in record["results"]]
    n_draws = record["settings"]["n_draws"]
    intro = (
        "Medians over genes of draw over truth, 1 is right: power per octave from that many bins on, and variance. "
        f"Then the share of bins whose truth lies in an interval of {n_draws} draws, in brackets how often another "
        "draw would; the continuous ranked probability score in gene means, of bins and of means over "
        f"{CELL} × {CELL} bins, small when good; and root mean variance over error. One evaluation is the distilled "
        "sampler, more are the diffusion. The estimate of a run is not made of draws: its correlation with the truth "
        "is the same whatever is taken here."
    )
    picture = "![accuracy of draws against evaluations](draws.png)"
    return "\n\n".join(["# Draws on phantoms", intro, records.table(columns, rows), picture, records.footer(record)])


def draw(results: list[dict], path: Path) -> None:
    """What more evaluations would buy."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    shown = ("PCC of a draw", f"PCC of the mean of {N_DRAWS}", "CRPS", f"cover 80% ({attainable(0.8):.2f})")
    figure, axes = plt.subplots(1, len(shown), figsize=(2.6 * len(shown), 2.6), layout="constrained")
    for axis, score in zip(axes, shown, strict=True):
        for name in dict.fromkeys(row["set"] for row in results):
            own = [row for row in results if row["set"] == name]
            axis.semilogx([row["evaluations"] for row in own], [row[score] for row in own], "o-", label=name)
        axis.set_title(score, fontsize=9)
        axis.set_xlabel("evaluations per draw")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    main()
