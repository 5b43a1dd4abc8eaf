"""Pictures of the report: curves under disturbances and over the size of the panel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from frame import axes
from outcomes import Results, View
from plan import CLEAN

SHOWN = {  # colour-blind safe (Okabe and Ito); ours is drawn last
    "linear": "#999999",
    "kriging, log, soft": "#56B4E9",
    "GP on H&E + space, log, soft, registered": "#009E73",
    "extra trees + kriging, log, soft, registered": "#E69F00",
    "FineST": "#0072B2",
    "ours, no registration": "#000000",
    "ours": "#D55E00",
}


SHAPE = {"size": (2.6, 2.6), "beside": 1.8, "sharey": "row"}


def draw(found: Results, folder: Path) -> dict[str, str]:
    """Write what there are results for; file names by task."""
    drawn = {}
    for name, curves in (("robustness", _robustness), ("panel", _panel)):
        if views := found.views(name):
            figure = curves(found, views, list(dict.fromkeys(view.group for view in views)))
            handles, labels = figure.axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
            figure.savefig(folder / f"{name}.png", dpi=110, metadata={"Software": None})
            drawn[name] = f"{name}.png"
    return drawn


def headline(rows: list[dict[str, Any]], path: Path) -> None:
    """One line per set: PCC of ours, of the best rival, of published tools, and the ceiling."""
    if not rows:
        return
    looks = {
        "ceiling": ("|", "#000000"),
        "TESLA": ("v", "#CC79A7"),
        "FineST": ("^", "#0072B2"),
        "closed form": ("s", "#56B4E9"),
        "best rival": ("D", "#009E73"),
        "ours": ("o", "#D55E00"),
    }
    figure, ((axis,),) = axes(1, size=(7.5, 0.32 * len(rows) + 1.0), beside=1.5)
    for y, row in enumerate(reversed(rows)):
        known = [value for value in row["values"].values() if not np.isnan(value)]
        axis.plot([min(known), max(known)], [y, y], color="#dddddd", zorder=0)
        for column, (marker, colour) in looks.items():
            label = column if y == 0 else None
            axis.scatter(row["values"][column], y, marker=marker, color=colour, s=30, label=label)
    views = [row["verdict"].view for row in reversed(rows)]
    axis.set_yticks(range(len(rows)), [f"{view.task}: {view.name}" for view in views], fontsize=8)
    axis.set_xlabel("PCC of log1p counts, mean over genes")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _robustness(found: Results, views: list[View], groups: list[str]) -> Any:
    kinds = list(dict.fromkeys(view.point.partition("=")[0] for view in views if view.point != CLEAN))
    figure, panels = axes(len(kinds), len(groups), **SHAPE)
    for row, group in zip(panels, groups, strict=True):
        own = [view for view in views if view.group == group]
        clean = next(view for view in own if view.point == CLEAN)
        for axis, kind in zip(row, kinds, strict=True):
            start = 1.0 if kind in ("counts_share", "pitch_factor") else 0.0
            _lines(axis, found, [(start, clean), *(_at(view) for view in own if view.point.startswith(f"{kind}="))])
            axis.set_xlabel(kind.replace("_", " "))
            if kind == "counts_share":
                axis.invert_xaxis()
        row[0].set_ylabel(f"PCC, {group}")
    return figure


def _panel(found: Results, views: list[View], groups: list[str]) -> Any:
    figure, panels = axes(len(groups), **SHAPE)
    for axis, group in zip(panels[0], groups, strict=True):
        _lines(axis, found, [_at(view) for view in views if view.group == group])
        axis.set(xscale="log", xlabel="genes in the panel", title=group)
    panels[0, 0].set_ylabel("PCC of the same ten genes")
    return figure


def _at(view: View) -> tuple[float, View]:
    return float(view.point.partition("=")[2]), view


def _lines(axis: Any, found: Results, points: list[tuple[float, View]]) -> None:
    for method, colour in SHOWN.items():
        known = [(x, found.mean(view, method, "pcc")) for x, view in sorted(points)]
        known = [(x, y) for x, y in known if not np.isnan(y)]
        if known:
            wide = 2.4 if method == "ours" else 1.2
            axis.plot(*zip(*known, strict=True), marker="o", markersize=3, color=colour, linewidth=wide, label=method)
