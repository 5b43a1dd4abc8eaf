"""Uncertainty of each bin: bounds of its expected counts, and the width of the interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import Normalize
from spatialdata import SpatialData

from hadmst_sc.pl._draw import (
    add_scale,
    axes_for,
    check,
    choose_genes,
    draw_belief,
    draw_map,
    finish,
    tissue_box,
    upper_end,
)
from hadmst_sc.pl._result import Section
from hadmst_sc.trust.intervals import LEVEL, doubt, rate_interval


def uncertainty(
    sdata: SpatialData,
    genes: str | Sequence[str] | None = None,
    *,
    key_added: str = "superres",
    level: float = LEVEL,
    cmap: str = "magma",
    width_cmap: str = "cividis",
    vmax_quantile: float = 0.995,
    figsize: tuple[float, float] | None = None,
    axes: np.ndarray | None = None,
) -> np.ndarray:
    """Draw lower bound, estimate and upper bound of every bin on one scale, and the width of the interval.

    Expression in all three maps is supported; expression only in the upper bound is possible. The last panel is the
    width of the interval divided by the estimate: dark bins are well known, bright bins are not. If the intervals are
    doubtful, its title says so, and :func:`hadmst_sc.tl.summary` gives the reason.

    Parameters
    ----------
    sdata
        Holds the result.
    genes
        Names; ``None`` draws the three whose maps vary most.
    key_added
        Name of the result.
    level
        Level of the interval, between 0 and 1; 0.9 is tested at held-out spots.
    cmap, width_cmap
        Colour maps of the counts and of the relative width.
    vmax_quantile
        Upper end of the scales, as a quantile over the tissue: of each gene for the counts, the largest over all genes
        for the relative width.
    figsize
        Inches; by default from the section's shape.
    axes
        ``(genes, 4)`` Axes to draw into.

    Returns
    -------
    ``(genes, 4)`` array of Axes.

    Raises
    ------
    KeyError
        If the result or a gene is missing, or the result has no standard deviation.
    ValueError
        If ``level`` is not between 0 and 1, or ``axes`` has another shape.

    Examples
    --------
    On the section of the example of :func:`hadmst_sc.tl.superresolve`:

    >>> hd.pl.uncertainty(sdata, "visible_000")[0, 0].figure.savefig("uncertainty.png")
    """
    check(genes=genes, level=level, cmap=cmap, width_cmap=width_cmap, vmax_quantile=vmax_quantile, figsize=figsize)
    section = Section(sdata, key_added, None, None)
    section.check_std("`pl.uncertainty`")
    genes, box = choose_genes(genes, section), tissue_box(section)
    axes = axes_for(len(genes), 4, box, figsize, axes)
    drawn = [_maps(section, gene, level) for gene in genes]
    # One scale for all genes, so that a brighter row is a less certain gene.
    widest = Normalize(0, max(upper_end(width.compressed(), vmax_quantile) for *_, width in drawn))
    for gene, (*maps, width), row in zip(genes, drawn, axes, strict=True):
        norm = Normalize(0, upper_end(maps[1].compressed(), vmax_quantile))
        for ax, values in zip(row[:3], maps, strict=True):
            last = draw_map(ax, section, values, norm, cmap)
        draw_belief(row[1], section, gene)
        add_scale(row[2], last, section.unit)
        add_scale(row[3], draw_map(row[3], section, width, widest, width_cmap), "width over estimate")
    tail = (1 - level) / 2
    width_title = f"width of {level:.0%} interval" + ("\n(doubtful)" if doubt(section.provenance) else "")
    titles = (f"{tail:.3g} quantile", "estimate", f"{1 - tail:.3g} quantile", width_title)
    finish(axes, box, [section] * 4, genes, titles)
    return axes


def _maps(section: Section, gene: str, level: float) -> tuple[np.ma.MaskedArray, ...]:
    """Lower end, estimate, upper end and relative width of one gene."""
    mean, std = section.channel(gene), section.channel(gene, std=True)
    low, high = rate_interval(mean.data, std.data, level)
    width = (high - low) / np.maximum(mean.data, 1e-12)
    low, high = (np.ma.masked_array(end, mean.mask) for end in (low, high))
    return low, mean, high, np.ma.masked_array(width, mean.mask | (mean.data <= 0))
