"""Cells on the H&E, coloured by their expected counts, and how uncertain these are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize
from spatialdata import SpatialData
from spatialdata.models import get_table_keys

from hadmst_sc.io.cells import read_outlines
from hadmst_sc.io.frame import systems_of
from hadmst_sc.pl._draw import (
    RELATIVE,
    UNKNOWN,
    Box,
    add_scale,
    axes_for,
    check,
    check_panels,
    draw_he,
    draw_tissue,
    finish,
    part_box,
    points_per_um,
    relative_std,
    saved,
    scale_of,
    upper_end,
)
from hadmst_sc.pl._result import Section
from hadmst_sc.section.arguments import printable
from hadmst_sc.section.errors import MissingKeyError, Problems
from hadmst_sc.trust.intervals import doubt

PANELS = {"he": "H&E", "cells": "expected counts", "std": "relative uncertainty"}
INTERVALS = ("std", "low", "high")  # layers of the table
ROUNDING = 1e-3
LEAST_POINTS = 0.25  # per µm, of the printed panel: if smaller, outlines would hide the H&E


def cells(
    sdata: SpatialData,
    cells_key: str,
    genes: str | Sequence[str] | None = None,
    *,
    key_added: str = "superres",
    table_key: str | None = None,
    panels: Sequence[str] | None = None,
    crop: tuple[float, float, float, float] | None = None,
    image_key: str | None = None,
    cmap: str = "magma",
    std_cmap: str = "cividis",
    vmax_quantile: float = 0.995,
    vmax: float | None = None,
    norm: Normalize | None = None,
    outline: bool = True,
    scale_bar: bool = True,
    figsize: tuple[float, float] | None = None,
    axes: np.ndarray | None = None,
    save: str | Path | None = None,
) -> np.ndarray:
    """Draw the H&E with its cells, and the cells coloured by expected counts, one row per gene.

    The counts are those of a table of :func:`hadmst_sc.tl.to_cells` in ``sdata.tables``. Units are µm from the corner
    of the image, x to the right and y down. Cells outside the tissue have no counts and are left out.

    Parameters
    ----------
    sdata
        Holds the result, the cells, and their table.
    cells_key
        Shapes, labels or points. Points are drawn as circles of 6 µm.
    genes
        Names; ``None`` draws the three that vary most between cells.
    key_added
        Name of the result.
    table_key
        Table of the cells' counts; ``None`` = the only one that annotates the cells and has intervals.
    panels
        Any of ``"he"`` (the H&E, with the outlines of the cells in parts of less than a millimetre), ``"cells"``
        (expected counts) and ``"std"`` (standard deviation divided by the estimate), in the order to draw; ``None``
        draws all, the H&E if it is there.
    crop
        ``(left, top, right, bottom)`` of the part to draw, in µm; ``None`` = the tissue. Single cells are visible in
        parts of a few hundred µm.
    image_key
        Another image of the same section; by default the one that the result was made from.
    cmap, std_cmap
        Colour maps of the counts, and of their relative standard deviation. Its scale ends at 2: above, the counts are
        only known to be small.
    vmax_quantile
        Upper end of the counts' scale, as a quantile over the cells in view.
    vmax
        Upper end of the counts' scale in counts per cell, instead of the quantile.
    norm
        Scale of the counts, such as ``LogNorm()`` or ``PowerNorm(0.5)`` of matplotlib; ``None`` = linear from 0. An end
        that it lacks is that of the gene.
    outline
        True to draw the border of the tissue.
    scale_bar
        True to draw a scale bar in the first panel of each row.
    figsize
        Inches; by default from the shape of the section or of the part.
    axes
        ``(genes, panels)`` Axes to draw into.
    save
        File to save the figure in; its ending names the format.

    Returns
    -------
    ``(genes, panels)`` array of Axes.

    Raises
    ------
    KeyError
        If the result, the cells, their table, a gene or the image is missing.
    ValueError
        If several tables have counts of these cells, ``X`` was normalised, no cell lies in ``crop``, a panel is
        unknown, ``axes`` has another shape, or another argument a bad value.

    Examples
    --------
    On the section of the example of :func:`hadmst_sc.tl.superresolve`, with three circles as cells:

    >>> from spatialdata.models import ShapesModel
    >>> from spatialdata.transformations import get_transformation
    >>> places = get_transformation(sdata["superres_bins"], get_all=True)
    >>> xy = np.array([[9.0, 9.0], [15.0, 9.0], [21.0, 9.0]])
    >>> sdata["cells"] = ShapesModel.parse(xy, geometry=0, radius=0.5, transformations=places)
    >>> sdata.tables["cell_counts"] = hd.tl.to_cells(sdata, "cells")
    >>> hd.pl.cells(sdata, "cells", "visible_000", save="cells.png").shape
    (1, 3)
    """
    check(
        genes=genes,
        table_key=table_key,
        panels=panels,
        crop=crop,
        image_key=image_key,
        cmap=cmap,
        std_cmap=std_cmap,
        vmax_quantile=vmax_quantile,
        vmax=vmax,
        norm=norm,
        figsize=figsize,
        save=save,
    )
    section = Section(sdata, key_added, image_key, None)
    shown = _panels(panels, section)
    box = part_box(section, crop)
    outlines, names = _in_view(section, cells_key, box)
    table_key = _table_key(section, cells_key, table_key)
    table = sdata.tables[table_key]
    chosen = _genes(genes, section, table_key)
    rows = pd.Index(table.obs[get_table_keys(table)[2]]).get_indexer(names)
    axes = axes_for(len(chosen), len(shown), box, figsize, axes)
    for gene, row in zip(chosen, axes, strict=True):
        counts, relative = _values(section, cells_key, table_key, gene, rows)
        there = np.flatnonzero(np.isfinite(counts))
        of_counts = scale_of(norm, counts[there], vmax or upper_end(counts[there], vmax_quantile))
        looks = {
            "cells": (counts, of_counts, cmap, "counts per cell"),
            "std": (relative, Normalize(0, UNKNOWN), std_cmap, RELATIVE),
        }
        for panel, ax in zip(shown, row, strict=True):
            scale_of_panel = points_per_um(ax, box)
            width = min(scale_of_panel, 0.8)
            if panel == "he":
                draw_he(ax, section, box)
                if scale_of_panel >= LEAST_POINTS:
                    _draw(ax, outlines, linewidth=width, facecolor="none", edgecolor="black")
                continue
            draw_tissue(ax, section, "0.85")
            values, scale, colours, label = looks[panel]
            style = {"array": values[there], "norm": scale, "cmap": colours}
            drawn = _draw(ax, [outlines[i] for i in there], linewidth=max(width, 0.3), edgecolor="face", **style)
            add_scale(ax, drawn, label)
    titles = [PANELS[panel] + "\n(doubtful)" * (panel == "std" and bool(doubt(section.provenance))) for panel in shown]
    finish(axes, box, [section] * len(shown), chosen, titles, outline=outline, scale_bar=scale_bar)
    return saved(axes, save)


def _draw(ax: Axes, outlines: list[np.ndarray], **style: Any) -> PolyCollection:
    drawn = PolyCollection(outlines, **style)
    ax.add_collection(drawn, autolim=False)
    return drawn


def _panels(panels: Sequence[str] | None, section: Section) -> list[str]:
    available = [panel for panel in PANELS if panel != "he" or section.has_he]
    chosen = check_panels(panels, PANELS, available)
    if "he" in chosen:
        section.check_he("`panels='he'`")
    return chosen


def _in_view(section: Section, cells_key: str, box: Box) -> tuple[list[np.ndarray], np.ndarray]:
    """Outlines that reach into a box, in µm, and the name of the cell of each."""
    problems, result = Problems("cells cannot be drawn"), section.result
    available = systems_of(result)
    found = read_outlines(section.sdata, cells_key, f"labels/{result.region}", available, section.from_system, problems)
    problems.raise_if_any()
    assert found is not None  # for types
    names, outlines = found
    left, right, bottom, top = box
    first = np.cumsum([0, *map(len, outlines[:-1])])
    ends = np.hstack([end.reduceat(np.concatenate(outlines), first) for end in (np.minimum, np.maximum)])
    inside = (ends[:, 0] < right) & (ends[:, 2] > left) & (ends[:, 1] < bottom) & (ends[:, 3] > top)
    if not inside.any():
        extent = tuple(round(float(end)) for end in (*ends[:, :2].min(0), *ends[:, 2:].max(0)))
        raise ValueError(
            f"`crop` needs a part with cells, but none of {cells_key!r} is in {(left, top, right, bottom)}. Cells lie "
            f"in {extent}, in µm from the corner of the image. Pass `crop=None`."
        )
    return [outlines[i] for i in np.flatnonzero(inside)], names[inside]


def _table_key(section: Section, cells_key: str, table_key: str | None) -> str:
    """Name of the table with the counts of the cells."""
    tables = section.sdata.tables
    of_cells = [
        name
        for name, table in tables.items()
        if set(INTERVALS) <= set(table.layers)
        and np.ravel(table.uns.get("spatialdata_attrs", {}).get("region")).tolist() == [cells_key]  # or a list
    ]
    if table_key is None and len(of_cells) > 1:
        raise ValueError(
            f"`table_key` needs one of {of_cells}, which all annotate {cells_key!r}. Pass `table_key={of_cells[0]!r}`."
        )
    if table_key in of_cells or (table_key is None and of_cells):
        return table_key or of_cells[0]
    what = "no table has" if table_key is None else f"`table_key={table_key!r}` has not"
    raise MissingKeyError(
        f"{what} the expected counts of {cells_key!r} and their intervals. {_again(section.result.key, cells_key)}"
    )


def _again(key: str, cells_key: str) -> str:
    other = "" if key == "superres" else f", key_added={key!r}"
    name = f"{cells_key}_counts"
    return (
        f"Call `sdata.tables[{name!r}] = hadmst_sc.tl.to_cells(sdata, {cells_key!r}{other})` and pass "
        f"`table_key={name!r}`."
    )


def _genes(genes: str | Sequence[str] | None, section: Section, table_key: str) -> list[str]:
    """The given genes, else the three that vary most between cells."""
    table = section.sdata.tables[table_key]
    if genes is None:
        spread = np.nanvar(table.to_df().to_numpy(float), axis=0)
        return table.var_names[np.argsort(-spread, kind="stable")[:3]].tolist()
    chosen = [genes] if isinstance(genes, str) else list(genes)
    absent = [printable(gene) for gene in chosen if gene not in table.var_names]
    if absent or not chosen:
        raise MissingKeyError(
            f"`genes` needs genes of tables/{table_key}, but has {absent or 'none'}. "
            f"Available: {table.var_names[:10].tolist()}. Pass `genes={table.var_names[:1].tolist()}`, or make the "
            f"table again with `genes=` of `hadmst_sc.tl.to_cells`."
        )
    return chosen


def _values(section: Section, cells_key: str, table_key: str, gene: str, rows: np.ndarray) -> np.ndarray:
    """Expected counts of one gene and their relative standard deviation, ``(2, rows)``; NaN for a row of -1."""
    table = section.sdata.tables[table_key]
    column = table[:, [gene]]
    every = np.stack([column.to_df(layer).to_numpy(float)[:, 0] for layer in (None, *INTERVALS)])
    counts, std, low, high = every
    if (counts < low * (1 - ROUNDING)).any() or (counts > high * (1 + ROUNDING)).any():
        raise ValueError(
            f"tables/{table_key}: `X` needs expected counts, but those of {printable(gene)!r} are not within their "
            f"intervals; they were probably normalised. {_again(section.result.key, cells_key)}"
        )
    return np.where(rows < 0, np.nan, np.stack([counts, relative_std(counts, std)])[:, rows])
