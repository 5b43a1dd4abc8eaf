"""Several results of one section side by side: other methods, other models, the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

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
    draw_spots,
    finish,
    is_names,
    saved,
    scale_of,
    tissue_box,
    upper_end,
)
from hadmst_sc.pl._result import Section
from hadmst_sc.section.arguments import printable


def compare(
    sdata: SpatialData,
    keys: Sequence[str] | Mapping[str, str],
    genes: str | Sequence[str] | None = None,
    *,
    spots: bool = True,
    cmap: str = "magma",
    vmax_quantile: float = 0.995,
    norm: Normalize | None = None,
    figsize: tuple[float, float] | None = None,
    axes: np.ndarray | None = None,
    save: str | Path | None = None,
) -> np.ndarray:
    """Draw results of one section and the measured spots side by side, on one scale per gene.

    The unit is counts per bin of the first result; maps with other bins are scaled by the ratio of the areas.

    Parameters
    ----------
    sdata
        Holds the results.
    keys
        Names of the results (``key_added`` of each run), or ``{title: name}``.
    genes
        Names; ``None`` draws the three whose maps vary most in the first result.
    spots
        True to draw the measured spots first.
    cmap
        Colour map.
    vmax_quantile
        Upper end of each gene's scale, as a quantile over the tissue; the largest among the results is used.
    norm
        Scale of the counts, such as ``LogNorm()`` or ``PowerNorm(0.5)`` of matplotlib; ``None`` = linear from 0. An end
        that it lacks is that of the gene.
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
        If a result is missing, or a result lacks a gene.
    ValueError
        If there is no key, results were made from different images, or ``axes`` has another shape.

    Examples
    --------
    On the section of the example of :func:`hadmst_sc.tl.superresolve`:

    >>> how = {"bin_um": 20.0, "model": None, "show_progress_bar": False}
    >>> hd.tl.superresolve(sdata, "phantom_full_image", key_added="plain", **how)
    >>> keys = {"network": "superres", "closed form": "plain"}
    >>> hd.pl.compare(sdata, keys, "visible_000", save="compare.png").shape
    (1, 3)
    """
    check(genes=genes, cmap=cmap, vmax_quantile=vmax_quantile, norm=norm, figsize=figsize, save=save)
    if not is_names(list(keys.values()) if isinstance(keys, Mapping) else keys):
        raise ValueError(f"`keys` needs names of results, but is {printable(repr(keys))}. Try `keys=['superres']`.")
    named = (
        dict(keys) if isinstance(keys, Mapping) else {key: key for key in ([keys] if isinstance(keys, str) else keys)}
    )
    if not named:
        raise ValueError("`keys` needs the name of at least one result, but is empty. Try `keys=['superres']`.")
    sections = [Section(sdata, key, None, None) for key in named.values()]
    first = sections[0]
    sections = [section.in_frame_of(first) for section in sections]
    if apart := {section.image_key for section in sections} - {first.image_key}:
        raise ValueError(
            f"`keys` needs results of one image, but they were made from {first.image_key!r} and {sorted(apart)}. "
            f"Their bins have no common corner. Draw them one by one with `pl.superresolve`."
        )
    chosen = choose_genes(genes, first)
    for section in sections[1:]:
        choose_genes(chosen, section)
    columns = [first, *sections] if spots else sections
    box, shape = tissue_box(first), (len(chosen), len(columns))
    axes = axes_for(*shape, box, figsize, axes)
    for gene, row in zip(chosen, axes, strict=True):
        maps = [section.channel(gene) * (first.bin_um / section.bin_um) ** 2 for section in sections]
        upper = max(upper_end(values.compressed(), vmax_quantile) for values in maps)
        scale = scale_of(norm, np.concatenate([values.compressed() for values in maps]), upper)
        if spots:
            draw_spots(row[0], first, first.at_spots(gene), scale, cmap, box)
        for ax, section, values in zip(row[spots:], sections, maps, strict=True):
            drawn = draw_map(ax, section, values, scale, cmap)
            draw_belief(ax, section, gene, wrap=True)
        add_scale(row[-1], drawn, f"{first.unit} of {first.bin_um:g} µm")
    finish(axes, box, columns, chosen, ["measured spots"] * spots + list(named))
    return saved(axes, save)
