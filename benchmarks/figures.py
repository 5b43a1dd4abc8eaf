"""Pictures of the report: curves under disturbances and over the size of the panel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from outcomes import Results
from plan import CLEAN

SHOWN = {  # colour-blind safe (Okabe and Ito); ours is drawn last
    "cubic": "#999999",
    "kriging": "#56B4E9",
    "ridge on H&E": "#E69F00",
    "GP on H&E + space": "#009E73",
    "U-Net": "#F0E442",
    "TESLA": "#CC79A7",
    "FineST": "#0072B2",
    "ours, no alignment": "#000000",
    "ours": "#D55E00",
}


def draw(found: Results, folder: Path) -> dict[str, str]:
    """Write what there are results for; file names by task."""
    import matplotlib

    matplotlib.use("agg")
    return {
        name: drawn
        for name, curve in (("robustness", _robustness), ("panel", _panel))
        if found.done(task=name) and (drawn := curve(found, folder))
    }


def _robustness(found: Results, folder: Path) -> str:
    views = found.views("robustness")
    kinds = list(dict.fromkeys(view.point.partition("=")[0] for view in views if view.point != CLEAN))
    groups = list(dict.fromkeys(view.group for view in views))
    figure, axes = _axes(len(groups), len(kinds))
    for row, group in enumerate(groups):
        own = [view for view in views if view.group == group]
        clean = next(view for view in own if view.point == CLEAN)
        for column, kind in enumerate(kinds):
            start = 1.0 if kind in ("counts_share", "pitch_factor") else 0.0
            points = [(start, clean)] + [
                (float(view.point.partition("=")[2]), view) for view in own if view.point.startswith(f"{kind}=")
            ]
            _lines(axes[row, column], found, sorted(points))
            axes[row, column].set_xlabel(kind.replace("_", " "))
            if kind == "counts_share":
                axes[row, column].invert_xaxis()
        axes[row, 0].set_ylabel(f"PCC, {group}")
    return _saved(figure, axes, folder / "robustness.png")


def _panel(found: Results, folder: Path) -> str:
    views = found.views("panel")
    groups = list(dict.fromkeys(view.group for view in views))
    figure, axes = _axes(1, len(groups))
    for column, group in enumerate(groups):
        points = [(float(view.point.partition("=")[2]), view) for view in views if view.group == group]
        _lines(axes[0, column], found, sorted(points))
        axes[0, column].set(xscale="log", xlabel="genes in the panel", title=group)
    axes[0, 0].set_ylabel("PCC of the same ten genes")
    return _saved(figure, axes, folder / "panel.png")


def _axes(rows: int, columns: int):
    from matplotlib import pyplot as plt

    return plt.subplots(
        rows, columns, figsize=(2.6 * columns + 1.8, 2.6 * rows), sharey="row", squeeze=False, layout="constrained"
    )


def _lines(axis, found: Results, points) -> None:
    for method, colour in SHOWN.items():
        known = [(x, found.mean(view, method, "pcc")) for x, view in points]
        known = [(x, y) for x, y in known if not np.isnan(y)]
        if known:
            wide = 2.4 if method == "ours" else 1.2
            axis.plot(*zip(*known, strict=True), marker="o", markersize=3, color=colour, linewidth=wide, label=method)
    axis.spines[["top", "right"]].set_visible(False)


def _saved(figure, axes, path: Path) -> str:
    from matplotlib import pyplot as plt

    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
    return path.name
