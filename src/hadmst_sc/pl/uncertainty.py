"""Uncertainty of each bin: bounds of its expected counts, and their relative standard deviation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import Normalize
from spatialdata import SpatialData

from hadmst_sc.pl._draw import (
    RELATIVE,
    UNKNOWN,
    add_scale,
    axes_for,
    check,
    choose_genes,
    draw_belief,
    draw_map,
    finish,
    relative_std,
    saved,
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
    std_cmap: str = "cividis",
    vmax_quantile: float = 0.995,
    figsize: tuple[float, float] | None = None,
    axes: np.ndarray | None = None,
    save: str | Path | None = None,
) -> np.ndarray:
    """Draw lower bound, estimate and upper bound of every bin on one scale, and the relative uncertainty.

    Expression in all three maps is supported; expression only in the upper bound is possible. The last panel is the
    standard deviation divided by the estimate, which within a gene depends on the estimate alone: dark bins have many
    counts for their error. Its scale ends at 2; above, nothing is known but that the counts are small. If the intervals
    are doubtful, its title says so, and :func:`hadmst_sc.tl.summary` gives the reason.

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
    cmap, std_cmap
        Colour maps of the counts and of their relative standard deviation.
    vmax_quantile
        Upper end of the counts' scale, as a quantile over the tissue.
    figsize
        Inches; by default from the section's shape.
    axes
        ``(genes, 4)`` Axes to draw into.
    save
        File to save the figure in; its ending names the format.

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

    >>> hd.pl.uncertainty(sdata, "visible_000", save="uncertainty.png").shape
    (1, 4)
    """
    check(
        genes=genes,
        level=level,
        cmap=cmap,
        std_cmap=std_cmap,
        vmax_quantile=vmax_quantile,
        figsize=figsize,
        save=save,
    )
    section = Section(sdata, key_added, None, None)
    section.check_std("`pl.uncertainty`")
    genes, box = choose_genes(genes, section), tissue_box(section)
    axes = axes_for(len(genes), 4, box, figsize, axes)
    for gene, row in zip(genes, axes, strict=True):
        mean, std = section.channel(gene), section.channel(gene, std=True)
        low, high = (np.ma.masked_array(end, mean.mask) for end in rate_interval(mean.data, std.data, level))
        norm = Normalize(0, upper_end(mean.compressed(), vmax_quantile))
        for ax, values in zip(row[:3], (low, mean, high), strict=True):
            last = draw_map(ax, section, values, norm, cmap)
        draw_belief(row[1], section, gene)
        add_scale(row[2], last, section.unit)
        relative = np.ma.masked_array(relative_std(mean.data, std.data), mean.mask | (mean.data <= 0))
        add_scale(row[3], draw_map(row[3], section, relative, Normalize(0, UNKNOWN), std_cmap), RELATIVE)
    tail = (1 - level) / 2
    last_title = "relative uncertainty" + ("\n(doubtful)" if doubt(section.provenance) else "")
    titles = (f"{tail:.3g} quantile", "estimate", f"{1 - tail:.3g} quantile", last_title)
    finish(axes, box, [section] * 4, genes, titles)
    return saved(axes, save)
