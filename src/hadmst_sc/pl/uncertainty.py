"""Which bins to believe: between what bounds each bin's expected counts lie, and how wide apart these are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import Normalize
from spatialdata import SpatialData

from hadmst_sc.pl._draw import (
    add_scale,
    axes_for,
    choose_genes,
    draw_map,
    finish,
    tissue_box,
    upper_end,
)
from hadmst_sc.pl._section import Section
from hadmst_sc.uncertainty import LEVEL, rate_interval

WIDEST = 2.0  # upper end of the scale of relative width: as uncertain as the estimate is high, and more


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
    """Draw the lower bound, the estimate and the upper bound of every bin on one scale, and how wide the interval is.

    What all three maps show is there; what only the upper one shows may be. The last panel is the width of the
    interval over the estimate: dark where a bin can be believed, bright where it is hardly known.

    Parameters
    ----------
    sdata
        Holds the result.
    genes
        Names; ``None`` draws the three whose maps vary most.
    key_added
        Name of the result.
    level
        Of the interval, between 0 and 1; 0.9 is the one that was calibrated at spots left out.
    cmap, width_cmap
        Colour maps of the counts and of the relative width.
    vmax_quantile
        Upper end of the scale of the counts, as a quantile of the estimate over the tissue.
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
        If ``level`` does not lie between 0 and 1, or ``axes`` has another shape.

    Examples
    --------
    On the section of the example of :func:`hadmst_sc.tl.superresolve`:

    >>> hd.pl.uncertainty(sdata, "visible_000")[0, 0].figure.savefig("uncertainty.png")
    """
    if not 0 < level < 1:
        raise ValueError(f"`level` needs a number between 0 and 1, but is {level}. Pass `level={LEVEL}`.")
    section = Section(sdata, key_added, None, None)
    section.check_std("`pl.uncertainty`")
    genes, box = choose_genes(genes, section), tissue_box(section)
    axes = axes_for(len(genes), 4, box, figsize, axes)
    for gene, row in zip(genes, axes, strict=True):
        mean, std = section.channel(gene), section.channel(gene, std=True)
        low, high = (np.ma.masked_array(end, mean.mask) for end in rate_interval(mean.data, std.data, level))
        width = np.ma.masked_array((high.data - low.data) / np.maximum(mean.data, 1e-12), mean.mask | (mean.data <= 0))
        norm = Normalize(0, upper_end(mean.compressed(), vmax_quantile))
        for ax, values in zip(row[:3], (low, mean, high), strict=True):
            drawn = draw_map(ax, section, values, norm, cmap)
        add_scale(row[2], drawn)
        add_scale(row[3], draw_map(row[3], section, width, Normalize(0, WIDEST), width_cmap), "width over estimate")
    tail = (1 - level) / 2
    titles = (f"{tail:.3g} quantile", "estimate", f"{1 - tail:.3g} quantile", f"width of {level:.0%} interval")
    finish(axes, box, [section] * 4, genes, titles)
    return axes
