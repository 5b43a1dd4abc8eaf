"""Shared by the plots of maps: Axes in the frame of the grid, and the artists drawn on them."""

from __future__ import annotations

import copy
from collections import abc
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.cm import ScalarMappable
from matplotlib.collections import Collection, EllipseCollection, PolyCollection
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.image import AxesImage
from matplotlib.transforms import Affine2D
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

from hadmst_sc.io.remedies import spelt
from hadmst_sc.io.result import again
from hadmst_sc.pl._result import Section, Spots
from hadmst_sc.section.arguments import Requirement, number, optional, positive, printable
from hadmst_sc.section.errors import MissingKeyError, Problems

Box = tuple[float, float, float, float]  # left, right, bottom, top in µm
SMALL = 4.5  # points: width of the smallest spot whose colour is seen
UNKNOWN = 2.0  # standard deviations over the estimate: from here on, nothing is known but that it is small
RELATIVE = "standard deviation / estimate"


def choose_genes(genes: str | Sequence[str] | None, section: Section) -> list[str]:
    """The given genes, else the three whose maps vary most."""
    if genes is None:
        return _most_variable(section)
    chosen = [genes] if isinstance(genes, str) else list(genes)
    absent = [gene for gene in chosen if gene not in section.genes]
    if absent or not chosen:
        some = f"{section.genes[:10]}{' ...' if len(section.genes) > 10 else ''}"
        found = [printable(gene) for gene in absent] or "an empty list"
        raise MissingKeyError(
            f"`genes` needs names that were super-resolved, but {found} is not in {section.result.key!r}. "
            f"Available: {some}. {_remedy(chosen, absent, section)}"
        )
    return chosen


def _remedy(chosen: list[str], absent: list[str], section: Section) -> str:
    """A run with these genes too if the table has them, else the genes that can be drawn."""
    if absent and set(absent) <= section.measured_genes():
        return again(section.result, absent)
    return f"Pass `genes={spelt(chosen, section.genes)}`."


def _most_variable(section: Section, n: int = 3) -> list[str]:
    """Genes whose maps vary most: from the table if it is unchanged since the run, else from the maps."""
    table = section.result.table
    ranked = table.var_names[np.argsort(-np.var(np.asarray(table.X), axis=0), kind="stable")[:n]].tolist()
    if set(table.var_names) <= set(section.genes) and all(section.result.untouched(gene) for gene in ranked):
        return ranked
    spread = [float(section.channel(gene).var() or 0) for gene in section.genes]
    return [section.genes[i] for i in np.argsort(-np.array(spread), kind="stable")[:n]]


def tissue_box(section: Section) -> Box:
    """Limits of the tissue in µm with a margin of 2 % of its longer side: left, right, bottom, top."""
    y, x = (np.flatnonzero(section.inside.any(axis)) for axis in (1, 0))
    if not len(y):
        return section.extent
    margin = 0.02 * max(np.ptp(y) + 1, np.ptp(x) + 1)
    (x0, y0), edge = section.corner, section.bin_um
    left, right = (x[0] - margin) * edge + x0, (x[-1] + 1 + margin) * edge + x0
    return left, right, (y[-1] + 1 + margin) * edge + y0, (y[0] - margin) * edge + y0


def part_box(section: Section, crop: tuple[float, float, float, float] | None) -> Box:
    """Limits of a part ``(left, top, right, bottom)`` as a box, or those of the tissue."""
    return tissue_box(section) if crop is None else (crop[0], crop[2], crop[3], crop[1])


def points_per_um(ax: Axes, box: Box) -> float:
    """Printed size of a µm in a panel that shows the box."""
    return float(ax.get_window_extent().width * 72 / ax.figure.dpi / (box[1] - box[0]))


def aspect(box: Box) -> float:
    """Height over width of a panel that shows the box."""
    return float(np.clip((box[2] - box[3]) / (box[1] - box[0]), 0.4, 2.5))


def axes_for(
    n_genes: int, n_panels: int, box: Box, figsize: tuple[float, float] | None, axes: np.ndarray | None
) -> np.ndarray:
    """``(genes, panels)`` Axes: the given ones, else those of a new figure with the section's aspect ratio."""
    if axes is not None:
        return _check_axes(axes, n_genes, n_panels)
    size = figsize or (3.4 * n_panels, 3.0 * aspect(box) * n_genes + 0.4)
    return plt.subplots(n_genes, n_panels, figsize=size, squeeze=False, layout="constrained")[1]


def two_axes(figsize: tuple[float, float], axes: np.ndarray | None) -> np.ndarray:
    """``(2,)`` Axes side by side: the given ones, else those of a new figure."""
    axes = plt.subplots(1, 2, figsize=figsize, layout="constrained")[1] if axes is None else np.asarray(axes).ravel()
    if axes.shape != (2,):
        raise ValueError(f"`axes` needs two Axes, but has {axes.size}. Pass `axes=plt.subplots(1, 2)[1]`.")
    return axes


def _check_axes(axes: np.ndarray, n_genes: int, n_panels: int) -> np.ndarray:
    """Given Axes as ``(genes, panels)``."""
    array, expected = np.asarray(axes), (n_genes, n_panels)
    if array.size != expected[0] * expected[1] or (array.ndim == 2 and array.shape != expected):
        raise ValueError(
            f"`axes` needs (genes, panels) = {expected} Axes, but has {array.shape}. "
            f"Pass `axes=plt.subplots({expected[0]}, {expected[1]}, squeeze=False)[1]`."
        )
    return array.reshape(expected)


def upper_end(values: np.ndarray, quantile: float) -> float:
    """Upper end of a scale: the quantile; the largest value if that is zero; 1 if all values are zero."""
    return float(np.quantile(values, quantile) or values.max() or 1.0) if values.size else 1.0


def scale_of(norm: Normalize | None, values: np.ndarray, upper: float) -> Normalize:
    """Scale of one gene: linear from 0 to ``upper``, or the given one, whose open ends are told by the values."""
    if norm is None:
        return Normalize(0, upper)
    own = copy.copy(norm)
    own.vmax = upper if own.vmax is None else own.vmax
    own.autoscale_None(values)
    return own


def draw_he(ax: Axes, section: Section, box: Box) -> None:
    """Draw the H&E in the frame of the grid."""
    # Twice the pixels of the panel on screen, because figures are saved at a higher resolution.
    width_px = max(1.0, 2 * ax.get_window_extent().width)
    pixels, to_um = section.he((box[1] - box[0]) / width_px, box)
    height, width = pixels.shape[:2]
    image = ax.imshow(pixels, extent=(0, width, height, 0), interpolation="antialiased")
    image.set_transform(Affine2D(to_um) + ax.transData)


def draw_map(ax: Axes, section: Section, values: np.ma.MaskedArray, norm: Normalize, cmap: str) -> AxesImage:
    """Draw one gene on the bins."""
    return ax.imshow(values, extent=section.extent, norm=norm, cmap=cmap, interpolation="nearest")


def draw_tissue(ax: Axes, section: Section, shade: str = "0.7", **style: Any) -> None:
    """Draw the tissue in grey, which is neither zero nor the top of a scale: nothing is known there."""
    tissue = np.ma.masked_where(~section.inside, section.inside)
    ax.imshow(tissue, extent=section.extent, cmap=ListedColormap([shade]), interpolation="nearest", **style)


def draw_belief(ax: Axes, section: Section, gene: str, *, wrap: bool = False) -> None:
    """Write below the map of a gene how far to believe it, and make a map without support pale.

    Where another map is beside it, ``wrap`` writes two lines.
    """
    text, is_guess = section.belief(gene)
    ax.set_xlabel(text.replace(", supported", ",\nsupported") if wrap else text, fontsize="medium")
    if is_guess:
        draw_tissue(ax, section, "white", alpha=0.6)
        ax.text(0.5, 0.5, "not supported", transform=ax.transAxes, ha="center", va="center", fontsize="large")


def draw_spots(ax: Axes, section: Section, values: np.ndarray, norm: Normalize, cmap: str, box: Box) -> Collection:
    """Draw one gene on the spots; small spots are drawn as wide as their distance, so that they can be seen."""
    draw_tissue(ax, section)
    spots, least_um = section.spots, SMALL / points_per_um(ax, box)
    if spots.size_um < least_um:
        spots = replace(spots, size_um=max(spots.size_um, min(spots.distance_um, least_um)))
    drawn = footprints(ax, spots, norm=norm, cmap=cmap)
    drawn.set(array=values, linewidth=0)
    return drawn


def footprints(ax: Axes, spots: Spots, **style: Any) -> Collection:
    """Discs or squares of the spots, added to a panel in µm."""
    drawn: Collection
    if spots.square:
        cos, sin = np.cos(spots.angle), np.sin(spots.angle)
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) @ [[cos, sin], [-sin, cos]] * spots.size_um / 2
        drawn = PolyCollection(list(spots.centres[:, None] + corners), **style)
    else:
        size = np.full(len(spots.centres), spots.size_um)
        where = {"offsets": spots.centres, "offset_transform": ax.transData}
        drawn = EllipseCollection(size, size, 0 * size, units="xy", **where, **style)
    ax.add_collection(drawn)
    return drawn


def draw_outline(ax: Axes, section: Section) -> None:
    """Draw the border of the tissue along the edges of bins."""
    if section.inside.all() or not section.inside.any():
        return
    ny, nx = section.inside.shape
    x, y = ((np.arange(n) + 0.5) * section.bin_um + at for n, at in zip((nx, ny), section.corner, strict=True))
    ax.contour(x, y, section.inside, levels=[0.5], colors="0.35", linewidths=0.6)


def draw_scale_bar(ax: Axes, width_um: float) -> None:
    """Draw a bar of 1, 2 or 5 times a power of ten, at most a quarter of the panel wide."""
    power = 10.0 ** np.floor(np.log10(width_um / 4))
    length = max(step * power for step in (1, 2, 5) if step * power <= width_um / 4)
    label = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    bar = AnchoredSizeBar(ax.transData, length, label, "lower left", size_vertical=width_um / 150, sep=3, pad=0.3)
    bar.patch.set(alpha=0.75, linewidth=0)  # legible on any tissue
    ax.add_artist(bar)


def relative_std(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Standard deviation divided by the estimate, at most ``UNKNOWN``."""
    return np.asarray(std / np.maximum(mean, std / UNKNOWN + 1e-12))


def add_scale(ax: Axes, drawn: ScalarMappable, label: str) -> None:
    """Add a colour bar next to the last panel that it belongs to."""
    ax.figure.colorbar(drawn, ax=ax, shrink=0.8, pad=0.02, label=label)


def finish(
    axes: np.ndarray,
    box: Box,
    sections: Sequence[Section],
    genes: Sequence[str],
    titles: Sequence[str],
    *,
    outline: bool = True,
    scale_bar: bool = True,
) -> None:
    """Label genes and panels; add a scale bar per row and the tissue's border; remove ticks."""
    for (row, column), ax in np.ndenumerate(axes):
        if outline:
            draw_outline(ax, sections[column])
        if row == 0:
            ax.set_title(titles[column], parse_math=False)
        if column == 0:
            ax.set_ylabel(printable(genes[row]), fontsize="large", fontstyle="italic", parse_math=False)
            if scale_bar:
                draw_scale_bar(ax, box[1] - box[0])
        ax.set(xlim=box[:2], ylim=box[2:], aspect="equal", xticks=[], yticks=[])
        ax.spines[:].set_visible(False)


def saved(axes: np.ndarray, save: str | Path | None) -> np.ndarray:
    """The Axes, once their figure is saved if a file is given."""
    if save is not None:
        axes.ravel()[0].figure.savefig(save, dpi=150, bbox_inches="tight")
    return axes


def check_panels(panels: str | Sequence[str] | None, known: Iterable[str], available: list[str]) -> list[str]:
    """The given panels, else all that are available."""
    chosen = available if panels is None else [panels] if isinstance(panels, str) else list(panels)
    unknown = [panel for panel in chosen if panel not in known]
    if unknown or not chosen:
        raise ValueError(
            f"`panels` needs some of {list(known)}, but has {unknown or 'none'}. Try `panels={available}`."
        )
    return chosen


def is_names(value: Any) -> bool:
    """True for a name or a list of names."""
    if isinstance(value, str):
        return True
    is_list = isinstance(value, abc.Collection) and getattr(value, "ndim", 1) == 1
    return is_list and all(isinstance(one, str) for one in value)


def _is_size(value: Any) -> bool:
    pair = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2
    return pair and all(map(positive().is_met, value))


def _is_colours(value: Any) -> bool:
    return isinstance(value, Colormap) or (isinstance(value, str) and value in mpl.colormaps)


def _is_picture(value: Any) -> bool:
    return isinstance(value, str | Path) and Path(value).suffix[1:].lower() in FigureCanvasBase.filetypes


def _is_crop(value: Any) -> bool:
    four = isinstance(value, abc.Sequence | np.ndarray) and not isinstance(value, str) and len(value) == 4
    if not four or not all(map(number(-np.inf).is_met, value)):
        return False
    left, top, right, bottom = value
    return bool(left < right and top < bottom)


NAMES = (Requirement("a name, a list of names or None", lambda value: value is None or is_names(value)), None)
NAME = (optional(Requirement("a name", lambda value: isinstance(value, str))), None)
COLOURS = (Requirement("a colour map of matplotlib", _is_colours), "magma")
# Each requirement with a value that meets it.
REQUIREMENTS: dict[str, tuple[Requirement, Any]] = {
    "genes": NAMES,
    "panels": NAMES,
    "image_key": NAME,
    "table_key": NAME,
    "cmap": COLOURS,
    "std_cmap": COLOURS,
    "vmax_quantile": (number(0, 1), 0.995),
    "vmax": (optional(positive()), None),
    "norm": (optional(Requirement("a scale of matplotlib", lambda value: isinstance(value, Normalize))), None),
    "save": (optional(Requirement("a file ending in .png, .pdf, .svg ...", _is_picture)), "figure.png"),
    "level": (Requirement("a number between 0 and 1", lambda one: number(0, 1).is_met(one) and 0 < one < 1), 0.9),
    "n_genes": (Requirement("a whole number of at least 1", lambda n: number(1).is_met(n) and n == int(n)), 30),
    "crop": (optional(Requirement("(left, top, right, bottom) in µm", _is_crop)), None),
    "figsize": (optional(Requirement("(width, height) in inches", _is_size)), None),
}


def check(**values: Any) -> None:
    """Check arguments of a plot and raise all problems together.

    Raises
    ------
    ValueError
        If any is bad; names each argument, its value and a valid one.
    """
    problems = Problems("the plot's arguments cannot be used")
    problems.check(values, {name: REQUIREMENTS[name] for name in values})
    problems.raise_if_any()
