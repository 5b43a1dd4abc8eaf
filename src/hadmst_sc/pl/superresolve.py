"""H&E, measured spots, super-resolved map and its standard deviation, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from spatialdata import SpatialData

from hadmst_sc.pl._draw import (
    Box,
    add_scale,
    axes_for,
    check,
    check_panels,
    choose_genes,
    draw_belief,
    draw_he,
    draw_map,
    draw_spots,
    finish,
    part_box,
    saved,
    scale_of,
    upper_end,
)
from hadmst_sc.pl._result import Section

PANELS = {"he": "H&E", "spots": "measured spots", "map": "super-resolved", "std": "standard deviation"}


def superresolve(
    sdata: SpatialData,
    genes: str | Sequence[str] | None = None,
    *,
    key_added: str = "superres",
    panels: Sequence[str] | None = None,
    crop: tuple[float, float, float, float] | None = None,
    image_key: str | None = None,
    table_key: str | None = None,
    cmap: str = "magma",
    std_cmap: str = "viridis",
    vmax_quantile: float = 0.995,
    vmax: float | None = None,
    norm: Normalize | None = None,
    outline: bool = True,
    scale_bar: bool = True,
    figsize: tuple[float, float] | None = None,
    axes: np.ndarray | None = None,
    save: str | Path | None = None,
) -> np.ndarray:
    """Draw a result of `tl.superresolve` and its inputs, one row per gene.

    The text below each map gives the reliability of the gene, whether the image helps, and the finest supported width
    (see :func:`hadmst_sc.tl.reliability`); an unsupported map is pale. Small spots are drawn wider.

    Units are µm from the corner of the image, x to the right and y down. Measured counts are divided by the number of
    bins in a spot's footprint, so that spots and map share one unit, counts per bin, and one colour scale.

    Parameters
    ----------
    sdata
        Holds the result and the elements it was made from.
    genes
        Names; ``None`` draws the three whose maps vary most.
    key_added
        Name of the result.
    panels
        Any of ``"he"``, ``"spots"``, ``"map"``, ``"std"``, in the order to draw; ``None`` draws all that ``sdata`` has
        (``"std"`` unless the run had ``with_std=False``, H&E and spots unless they were removed after the run).
    crop
        ``(left, top, right, bottom)`` of the part to draw, in µm; ``None`` = the tissue.
    image_key, table_key
        Other elements of the same section to show; by default those the result was made from.
    cmap, std_cmap
        Colour maps of the counts and of their standard deviation.
    vmax_quantile
        Upper end of each scale, as a quantile over the tissue; larger counts get the last colour.
    vmax
        Upper end of the counts' scale in counts per bin, instead of the quantile.
    norm
        Scale of the counts, such as ``LogNorm()`` or ``PowerNorm(0.5)`` of matplotlib; ``None`` = linear from 0. An end
        that it lacks is that of the gene.
    outline
        True to draw the border of the tissue.
    scale_bar
        True to draw a scale bar in the first panel of each row.
    figsize
        Inches; by default from the section's shape.
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
        If the result, a gene or an element is missing.
    ValueError
        If a panel is unknown, ``axes`` has another shape, or another argument a bad value.

    Examples
    --------
    On the section of the example of :func:`hadmst_sc.tl.superresolve`:

    >>> hd.pl.superresolve(sdata, "visible_000", save="superres.png").shape
    (1, 4)
    """
    check(
        genes=genes,
        panels=panels,
        crop=crop,
        image_key=image_key,
        table_key=table_key,
        cmap=cmap,
        std_cmap=std_cmap,
        vmax_quantile=vmax_quantile,
        vmax=vmax,
        norm=norm,
        figsize=figsize,
        save=save,
    )
    section = Section(sdata, key_added, image_key, table_key)
    panels = _check_panels(panels, section)
    genes = choose_genes(genes, section)
    box, shape = part_box(section, crop), (len(genes), len(panels))
    axes = axes_for(*shape, box, figsize, axes)
    for gene, row in zip(genes, axes, strict=True):
        _draw_row(gene, dict(zip(panels, row, strict=True)), section, box, cmap, std_cmap, vmax_quantile, vmax, norm)
    sections, titles = [section] * len(panels), [PANELS[panel] for panel in panels]
    finish(axes, box, sections, genes, titles, outline=outline, scale_bar=scale_bar)
    return saved(axes, save)


def _check_panels(panels: Sequence[str] | None, section: Section) -> list[str]:
    there = {"he": section.has_he, "spots": section.has_spots, "map": True, "std": section.has_std}
    available = [panel for panel in PANELS if there[panel]]
    chosen = check_panels(panels, PANELS, available)
    for panel, complain in (("std", section.check_std), ("he", section.check_he), ("spots", section.check_spots)):
        if panel in chosen:
            complain(f"`panels={panel!r}`")
    return chosen


def _draw_row(
    gene: str,
    row: dict[str, Axes],
    section: Section,
    box: Box,
    cmap: str,
    std_cmap: str,
    quantile: float,
    vmax: float | None,
    norm: Normalize | None,
) -> None:
    """Draw one gene: maps and spots on one scale, the standard deviation on another."""
    counts = [section.channel(gene).compressed()] if "map" in row else []
    counts += [section.at_spots(gene)] if "spots" in row else []
    if vmax is None:
        vmax = max((upper_end(values, quantile) for values in counts), default=1.0)
    scale = scale_of(norm, np.concatenate(counts or [np.ones(1)]), vmax)
    drawn: ScalarMappable | None = None
    for panel, ax in row.items():
        if panel == "he":
            draw_he(ax, section, box)
        elif panel == "spots":
            drawn = draw_spots(ax, section, section.at_spots(gene), scale, cmap, box)
        elif panel == "map":
            drawn = draw_map(ax, section, section.channel(gene), scale, cmap)
            draw_belief(ax, section, gene)
        else:
            std = section.channel(gene, std=True)
            image = draw_map(ax, section, std, Normalize(0, upper_end(std.compressed(), quantile)), std_cmap)
            add_scale(ax, image, section.unit)
    shared = [ax for panel, ax in row.items() if panel in ("spots", "map")]
    if drawn is not None:
        add_scale(shared[-1], drawn, section.unit)
