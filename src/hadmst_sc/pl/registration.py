"""The registration of the H&E: spots on the original image, and the estimated displacement at each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.quiver import Quiver
from spatialdata import SpatialData

from hadmst_sc.alignment.record import Alignment
from hadmst_sc.io.result import again
from hadmst_sc.pl._draw import (
    Box,
    aspect,
    check,
    draw_he,
    draw_outline,
    draw_scale_bar,
    footprints,
    saved,
    tissue_box,
    two_axes,
)
from hadmst_sc.pl._result import Section


def registration(
    sdata: SpatialData,
    *,
    key_added: str = "superres",
    cmap: str = "viridis",
    scale_bar: bool = True,
    figsize: tuple[float, float] | None = None,
    axes: np.ndarray | None = None,
    save: str | Path | None = None,
) -> np.ndarray:
    """Draw the position of the H&E relative to the spots, as `tl.superresolve` estimated it.

    The left panel shows the original H&E and spots. The right panel has an arrow per spot, to the position where the
    image shows what the spot measured. Units are µm from the corner of the image, x to the right and y down. Arrows are
    stretched, and coloured by their true length. The title gives the correction that was applied and the leave-one-out
    R² of the leading components in place and at the most probable position.

    Parameters
    ----------
    sdata
        Holds the result and the elements it was made from.
    key_added
        Name of the result.
    cmap
        Colours of the arrows.
    scale_bar
        True to draw a scale bar in the first panel.
    figsize
        Inches; by default from the section's shape.
    axes
        Two Axes to draw into.
    save
        File to save the figure in; its ending names the format.

    Returns
    -------
    ``(2,)`` array of Axes.

    Raises
    ------
    KeyError
        If the result or an element it was made from is missing.
    ValueError
        If the result was made with ``align=False``, or ``axes`` are not two.

    Examples
    --------
    On the section of the example of :func:`hadmst_sc.tl.superresolve`:

    >>> hd.pl.registration(sdata, save="registration.png").shape
    (2,)
    """
    check(cmap=cmap, figsize=figsize, save=save)
    section = Section(sdata, key_added, None, None)
    found = _found(section, key_added)
    section.check_he("`pl.registration`")
    section.check_spots("`pl.registration`")
    box = tissue_box(section)
    axes = two_axes(figsize or (9.0, 4.0 * aspect(box) + 1.0), axes)
    draw_he(axes[0], section, box)
    footprints(axes[0], section.spots, facecolor="none", edgecolor="black", linewidth=0.5)
    axes[0].set_title(f"H&E and its {len(section.spots.centres):,} spots")
    moved = found.displacement_um((section.spots.centres + section.moved_um)[:, ::-1])  # in the grid of the run
    arrows = _draw_arrows(axes[1], section.spots.centres, moved[:, ::-1], box, cmap)
    axes[1].figure.colorbar(arrows, ax=axes[1], shrink=0.8, pad=0.02, label="displacement of the H&E, µm")
    axes[1].set_title(_title(found))
    draw_outline(axes[1], section)
    if scale_bar:
        draw_scale_bar(axes[0], box[1] - box[0])
    for ax in axes:
        ax.set(xlim=box[:2], ylim=box[2:], aspect="equal", xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    return saved(axes, save)


def _found(section: Section, key_added: str) -> Alignment:
    record = section.provenance.get("registration", "off")
    if isinstance(record, str):
        raise ValueError(
            f"`key_added={key_added!r}` needs a result whose H&E was registered, but its `registration` is {record!r}. "
            f"{again(section.result, align=True)}"
        )
    return Alignment.from_record(record)


def _draw_arrows(ax: Axes, xy_um: np.ndarray, moved_um: np.ndarray, box: Box, cmap: str) -> Quiver:
    """Draw arrows at the spots, scaled so that the longest is a fifteenth of the panel."""
    length = np.hypot(*moved_um.T)
    longest = float(length.max()) or 1.0
    stretch = (box[1] - box[0]) / 15 / longest
    arrows = ax.quiver(
        *xy_um.T, *moved_um.T, length, angles="xy", scale_units="xy", scale=1 / stretch, cmap=cmap, width=0.003
    )
    arrows.set_clim(0, longest)
    return arrows


def _title(found: Alignment) -> str:
    """The applied correction and its gain."""
    if not found.applied:
        return f"{found.description} (R² {found.score_here:.3f})"
    return f"{found.description}\nleave-one-out R² {found.score_here:.3f} → {found.score_there:.3f}"
