"""H&E, measured spots, super-resolved map and its standard deviation, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import Collection, EllipseCollection, PolyCollection
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.image import AxesImage
from matplotlib.transforms import Affine2D
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from spatialdata import SpatialData

from hadmst_sc.pl._section import Section

Box = tuple[float, float, float, float]  # left, right, bottom, top in µm

PANELS = {"he": "H&E", "low": "measured spots", "high": "super-resolved", "std": "standard deviation"}


def superresolve(
    sdata: SpatialData,
    genes: str | Sequence[str] | None = None,
    *,
    key: str = "superres",
    panels: Sequence[str] | None = None,
    image_key: str | None = None,
    table_key: str | None = None,
    cmap: str = "magma",
    std_cmap: str = "viridis",
    vmax_quantile: float = 0.995,
    vmax: float | None = None,
    outline: bool = True,
    scale_bar: bool = True,
    figsize: tuple[float, float] | None = None,
    axes: np.ndarray | None = None,
) -> np.ndarray:
    """Draw what `tl.superresolve` made beside what it was made from, one row per gene.

    Everything is drawn in µm from the corner of the image, x to the right and y down. Measured counts are divided by
    the bins in a spot's footprint, so that spots and map have one unit, counts per bin, and share one colour scale.

    Parameters
    ----------
    sdata
        Holds the result and the elements it was made from.
    genes
        Names; ``None`` draws the three whose maps vary most.
    key
        The ``key_added`` of `tl.superresolve`.
    panels
        Any of ``"he"``, ``"low"``, ``"high"``, ``"std"``, in the order to draw; ``None`` draws all that the result has
        (``"std"`` exists only for ``n_samples > 1``).
    image_key, table_key
        Other elements of the same section to show; by default the ones the result was made from.
    cmap, std_cmap
        Colour maps of the counts and of their standard deviation.
    vmax_quantile
        Upper end of each scale, as a quantile over the tissue; counts above it are drawn in the last colour.
    vmax
        Upper end of the counts' scale in counts per bin, instead of the quantile.
    outline
        Whether to draw the border of the tissue.
    scale_bar
        Whether to draw a scale bar in the first panel of each row.
    figsize
        Inches; by default from the section's shape.
    axes
        ``(genes, panels)`` Axes to draw into.

    Returns
    -------
    ``(genes, panels)`` array of Axes.

    Raises
    ------
    KeyError
        If the result, a gene or an element is missing.
    ValueError
        If a panel is unknown or ``axes`` has another shape.

    Examples
    --------
    >>> hd.tl.superresolve(sdata, "section_hires_image", genes=["EPCAM"])
    >>> hd.pl.superresolve(sdata, "EPCAM")[0, 0].figure.savefig("epcam.png")
    """
    section = Section(sdata, key, image_key, table_key)
    panels = _check_panels(panels, section)
    genes = _choose_genes(genes, section)
    box = tissue_box(section)
    axes = _make_axes(len(genes), len(panels), box, figsize) if axes is None else _check_axes(axes, genes, panels)
    for gene, row in zip(genes, axes, strict=True):
        _draw_row(gene, dict(zip(panels, row, strict=True)), section, box, cmap, std_cmap, vmax_quantile, vmax)
        row[0].set_ylabel(gene, fontsize="large", fontstyle="italic")
        if scale_bar:
            draw_scale_bar(row[0], box[1] - box[0])
    for index, ax in np.ndenumerate(axes):
        if outline:
            draw_outline(ax, section)
        if index[0] == 0:
            ax.set_title(PANELS[panels[index[1]]])
        ax.set(xlim=box[:2], ylim=box[2:], aspect="equal", xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    return axes


def _check_panels(panels: Sequence[str] | None, section: Section) -> list[str]:
    available = [panel for panel in PANELS if panel != "std" or section.has_std]
    chosen = available if panels is None else [panels] if isinstance(panels, str) else list(panels)
    unknown = [panel for panel in chosen if panel not in PANELS]
    if unknown or not chosen:
        raise ValueError(
            f"`panels` needs some of {list(PANELS)}, but has {unknown or 'none'}. Try `panels={available}`."
        )
    if "std" in chosen and not section.has_std:
        raise KeyError(
            f"`panels='std'` needs {section.names.std!r}, which is not in `sdata.images`. It is written when draws are "
            f"made. Try `tl.superresolve(sdata, {section.image_key!r}, n_samples=4)`."
        )
    return chosen


def _choose_genes(genes: str | Sequence[str] | None, section: Section) -> list[str]:
    if genes is None:
        matrix = section.sdata.tables[section.names.table].X
        return [section.genes[i] for i in np.argsort(-np.var(np.asarray(matrix), axis=0), kind="stable")[:3]]
    chosen = [genes] if isinstance(genes, str) else list(genes)
    absent = [gene for gene in chosen if gene not in section.genes]
    if absent or not chosen:
        some = f"{section.genes[:10]}{' ...' if len(section.genes) > 10 else ''}"
        raise KeyError(
            f"`genes` needs names that were super-resolved, but {absent or 'an empty list'} is not in "
            f"{section.names.image!r}. Available: {some}. "
            f"Try `tl.superresolve(sdata, {section.image_key!r}, genes={chosen})`."
        )
    return chosen


def tissue_box(section: Section) -> Box:
    """Limits in µm: the tissue and 2 % of its longer side around it, as left, right, bottom, top."""
    y, x = (np.flatnonzero(section.inside.any(axis)) for axis in (1, 0))
    if not len(y):
        return section.extent
    margin = 0.02 * max(np.ptp(y) + 1, np.ptp(x) + 1)
    left, right, top, bottom = x[0] - margin, x[-1] + 1 + margin, y[0] - margin, y[-1] + 1 + margin
    return tuple(float(edge * section.bin_um) for edge in (left, right, bottom, top))  # type: ignore[return-value]


def _make_axes(n_genes: int, n_panels: int, box: Box, figsize: tuple[float, float] | None) -> np.ndarray:
    ratio = float(np.clip((box[2] - box[3]) / (box[1] - box[0]), 0.4, 2.5))
    size = figsize or (3.4 * n_panels, 3.0 * ratio * n_genes + 0.4)
    return plt.subplots(n_genes, n_panels, figsize=size, squeeze=False, layout="constrained")[1]


def _check_axes(axes: np.ndarray, genes: list[str], panels: list[str]) -> np.ndarray:
    array, expected = np.asarray(axes), (len(genes), len(panels))
    if array.size != expected[0] * expected[1] or (array.ndim == 2 and array.shape != expected):
        raise ValueError(
            f"`axes` needs (genes, panels) = {expected} Axes, but has {array.shape}. "
            f"Try `plt.subplots({expected[0]}, {expected[1]}, squeeze=False)[1]`."
        )
    return array.reshape(expected)


def _draw_row(
    gene: str,
    row: dict[str, Axes],
    section: Section,
    box: Box,
    cmap: str,
    std_cmap: str,
    quantile: float,
    vmax: float | None,
) -> None:
    """One gene: maps and spots on one scale, the standard deviation on its own."""
    counts = [section.channel(gene).compressed()] if "high" in row else []
    counts += [section.low(gene)] if "low" in row else []
    norm = Normalize(0, vmax if vmax is not None else max((_top(values, quantile) for values in counts), default=1.0))
    drawn: ScalarMappable | None = None
    for panel, ax in row.items():
        if panel == "he":
            draw_he(ax, section, box)
        elif panel == "low":
            drawn = _draw_spots(ax, section, section.low(gene), norm, cmap)
        elif panel == "high":
            drawn = _draw_map(ax, section, section.channel(gene), norm, cmap)
        else:
            std = section.channel(gene, std=True)
            image = _draw_map(ax, section, std, Normalize(0, _top(std.compressed(), quantile)), std_cmap)
            ax.figure.colorbar(image, ax=ax, shrink=0.8, pad=0.02, label="counts per bin")
    shared = [ax for panel, ax in row.items() if panel in ("low", "high")]
    if drawn is not None:
        shared[-1].figure.colorbar(drawn, ax=shared[-1], shrink=0.8, pad=0.02, label="counts per bin")


def _top(values: np.ndarray, quantile: float) -> float:
    """Upper end of a scale: the quantile, the largest value if that is zero, one if all are."""
    return float(np.quantile(values, quantile) or values.max() or 1.0) if values.size else 1.0


def draw_he(ax: Axes, section: Section, box: Box) -> None:
    """The H&E in the frame of the grid."""
    # Twice the pixels of the panel on screen, because figures are saved at a higher resolution.
    width_px = max(1.0, 2 * ax.get_window_extent().width)
    pixels, to_um = section.he(um_per_px=(box[1] - box[0]) / width_px)
    height, width = pixels.shape[:2]
    image = ax.imshow(pixels, extent=(0, width, height, 0), interpolation="antialiased")
    image.set_transform(Affine2D(to_um) + ax.transData)


def _draw_map(ax: Axes, section: Section, values: np.ma.MaskedArray, norm: Normalize, cmap: str) -> AxesImage:
    return ax.imshow(values, extent=section.extent, norm=norm, cmap=cmap, interpolation="nearest")


def _draw_spots(ax: Axes, section: Section, values: np.ndarray, norm: Normalize, cmap: str) -> Collection:
    spots = section.spots
    # Three quarters of the tissue are unmeasured: grey, so that they read neither as zero nor as the top of the scale.
    tissue = np.ma.masked_where(~section.inside, section.inside)
    ax.imshow(tissue, extent=section.extent, cmap=ListedColormap(["0.7"]), interpolation="nearest")
    drawn: Collection
    if spots.square:
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * spots.size_um / 2
        drawn = PolyCollection(list(spots.centres[:, None] + corners), norm=norm, cmap=cmap)
    else:
        size = np.full(len(values), spots.size_um)
        drawn = EllipseCollection(
            size, size, 0 * size, units="xy", offsets=spots.centres, offset_transform=ax.transData, norm=norm, cmap=cmap
        )
    drawn.set(array=values, linewidth=0)
    ax.add_collection(drawn)
    return drawn


def draw_outline(ax: Axes, section: Section) -> None:
    """Border of the tissue along the edges between bins."""
    if section.inside.all() or not section.inside.any():
        return
    ny, nx = section.inside.shape
    x, y = ((np.arange(n) + 0.5) * section.bin_um for n in (nx, ny))
    ax.contour(x, y, section.inside, levels=[0.5], colors="0.35", linewidths=0.6)


def draw_scale_bar(ax: Axes, width_um: float) -> None:
    """A bar of 1, 2 or 5 times a power of ten, at most a quarter of the panel wide."""
    power = 10.0 ** np.floor(np.log10(width_um / 4))
    length = max(step * power for step in (1, 2, 5) if step * power <= width_um / 4)
    label = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    bar = AnchoredSizeBar(ax.transData, length, label, "lower left", size_vertical=width_um / 150, sep=3, pad=0.3)
    bar.patch.set(alpha=0.75, linewidth=0)  # legible on any tissue
    ax.add_artist(bar)
