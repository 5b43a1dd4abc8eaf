"""Cells and tables of pages that are made from result files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pairs
import records
from outcomes import Results, View
from plan import REGISTERED

OURS, CLOSED_FORM = "ours", "ours, closed form"
TURNED = "ours, H&E upside down"  # put wrong on purpose: that it is refused is a result
SAME = 0.001  # of means over genes: those of extra trees and kriging differ by up to .0002 between two machines
BETTER: dict[str, Callable[..., float]] = {"pcc": max, "rmse": min, "deviance": min}
TITLES = {
    "pcc": "PCC",
    "rmse": "RMSE (s.d.)",
    "deviance": "deviance",
    "ssim": "SSIM",
    "pcc_rate": "PCC of rate",
    "rmse_mean": "RMSE (mean)",
    "coherence": "coherence",
    "moran": "Moran rank",
    "colocalisation": "co-localisation",
    "colocalisation_rms": "its RMS error",
    "ari": "ARI",
}


def by_method(
    methods: Iterable[str], columns: Mapping[str, Any], content: Callable[[str, Any], str], head: str = "method"
) -> str:
    """A table with one row per method: ``content`` makes a cell from its name and what a column stands for."""
    rows = [[name, *(content(name, column) for column in columns.values())] for name in methods]
    return records.table([head, *columns], rows)


def cell(values: dict[str, np.ndarray], *, spread: bool = False) -> str:
    """Mean over genes and sections; infinite scores are counted and not averaged."""
    if not values:
        return "–"
    every = np.concatenate(list(values.values()))
    infinite = ~np.isfinite(every)
    if infinite.all():
        return "∞"
    mean = f"{every[~infinite].mean():.3f}" + (f" ± {every[~infinite].std():.3f}" if spread else "")
    return mean + (f" ({infinite.sum()} ∞)" if infinite.any() else "")


def number(value: float, digits: int = 3) -> str:
    """A number, or a dash where there is none."""
    return "–" if np.isnan(value) else f"{value:.{digits}f}"


def interval(difference: pairs.Difference | None) -> str:
    """``+0.012 [+0.008, +0.016]``; without an end where there is none."""
    if difference is None:
        return "–"
    if np.isnan(difference.low):
        return f"{difference.mean:+.3f}"
    return f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"


def minus(found: Results, view: View, method: str, metric: str, *, of: str = OURS) -> pairs.Difference | None:
    """Ours minus a method, or another one ``of`` which it is subtracted."""
    drawn = (found.resampled(view, of, metric), found.resampled(view, method, metric))
    n_spots = min((about["n_spots"] for about in found.about(view).values()), default=None)
    return pairs.paired(found.scores(view, of, metric), found.scores(view, method, metric), drawn, n_spots)


def present(found: Results, view: View, metrics: Iterable[str]) -> list[str]:
    """Metrics that a method of the view has."""
    methods = found.methods(view)
    return [metric for metric in metrics if any(found.scores(view, method, metric) for method in methods)]


def made(found: Results, task: str | None = None) -> str:
    """Commits, machines, versions and weights behind the numbers."""
    cells = [c for c in found.cells if c["status"] == "done" and task in (None, c["task"])]
    of_cells = [c["made"] for c in cells]
    commits = {m["commit"][:12] + (" with uncommitted changes" if m["uncommitted_changes"] else "") for m in of_cells}
    machines = {m["machine"] for m in of_cells}
    versions = {", ".join(f"{k} {v}" for k, v in m["versions"].items()) for m in of_cells}
    weights = {f"{name} {sha[:12]}" for c in cells for name, sha in c.get("weights", {}).items()}
    # Cells that got the result of another have its seconds to the last digit; it was computed once.
    runs = {(c["method"].removesuffix(REGISTERED), c.get("fingerprint"), c["cost"].get("seconds", 0.0)) for c in cells}
    hours = sum(seconds for *_, seconds in runs) / 3600
    of_ours = sum(seconds for name, _, seconds in runs if name.startswith(OURS)) / 3600
    kept = sum("kept" in c for c in cells)
    of_kept = (
        f"{kept:,} are of earlier code, whose scores of the cheapest cell of each method and task are those of today "
        f"to within {SAME}; "
        if kept
        else ""
    )
    return (
        f"{len(cells):,} cells, {hours:.1f} hours of one core, {of_ours:.1f} of them for our methods; "
        f"{of_kept}commit(s) {', '.join(sorted(commits))}; "
        f"{'; '.join(sorted(machines))}; {'; '.join(sorted(versions))}; weights {'; '.join(sorted(weights))}."
    )
