"""Check a section before it is read: its size in memory, spots outside the image, and images that may not be H&E."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import ceil, log10, sqrt
from typing import Any

import numpy as np
from geopandas import GeoDataFrame
from spatialdata import SpatialData

from hadmst_sc.io.lattice import lattice
from hadmst_sc.io.pixels import find_channels
from hadmst_sc.io.resample import bin_colours, level_to_read
from hadmst_sc.io.resolve import Paired, affine, choose_system, invertible, levels, systems, transform
from hadmst_sc.io.tissue import near_spots
from hadmst_sc.runtime import memory_limit
from hadmst_sc.section.errors import Problems, logger
from hadmst_sc.section.grid import Grid
from hadmst_sc.section.measurement import Measurement

PER_BIN = 2000  # bytes per bin of the smallest run; `tl` estimates the memory for given settings
MAX_BINS = 10**8  # also if the system does not report its memory
MAX_PIXELS = 25 * 10**9  # of the level that is read: minutes of decoding
FEWEST = 4  # smallest number of bins along the longer side: fewer show no map
FITTING = 200_000  # bins of the grid that a message suggests: a result of 200 genes on it fits in memory
MUCH_LARGER = 16  # image area / area that the spots span, above which the image is wrong, not the bins


def check_sizes(element: Any, image_key: str, spots: Paired, xy: np.ndarray, grid: Grid, problems: Problems) -> None:
    """Add a problem for a grid or image too large for this machine, or for bins too large to show anything.

    Parameters
    ----------
    element, image_key
        The image; only its sizes are used.
    spots, xy
        The spots, and their centres ``(spots, 2)`` as (x, y) in pixels of the image's finest level.
    grid
        The grid to check.
    """
    finest, (level, _) = levels(element)[0], level_to_read(element, grid)
    side_um = [finest.sizes[axis] * grid.um_per_px for axis in ("y", "x")]
    extent = f"an image of {side_um[0]:,.6g} x {side_um[1]:,.6g} µm"
    if max(grid.shape) < FEWEST:
        problems.add(
            f"`bin_um` needs to leave at least {FEWEST} bins along {extent}, but {grid.bin_um:g} leaves "
            f"{grid.shape[0]} x {grid.shape[1]}. Pass `bin_um={_nice(min(10, max(side_um) / 40)):g}`.",
            ValueError,
        )
        return
    memory, needed = memory_limit(), PER_BIN * grid.n_bins
    too_many = needed > memory or grid.n_bins > MAX_BINS
    pixels = level.sizes["y"] * level.sizes["x"]
    rows = max(level.chunks[1]) if level.chunks else 0  # decoded together; none of an image in memory
    strip = 2 * level.sizes["c"] * level.dtype.itemsize * level.sizes["x"] * rows
    if not too_many and pixels <= MAX_PIXELS and strip <= memory:
        return
    span = np.ptp(xy, axis=0) / (finest.sizes["x"], finest.sizes["y"])
    bins = f"{grid.shape[0]:,} x {grid.shape[1]:,} bins of {grid.bin_um:g} µm"
    there = f"but {memory / 1e9:,.1f} GB are available"
    if too_many and span.prod() * MUCH_LARGER > 1:
        problems.add(
            f"`bin_um` needs bins that fit in memory, but {grid.bin_um:g} gives {bins} on {extent}: they need "
            f"{needed / 1e9:,.1f} GB, {there}. Pass `bin_um={_nice(sqrt(side_um[0] * side_um[1] / FITTING)):g}`.",
            ValueError,
        )
        return
    if not too_many:
        bins, needed = f"{pixels:.2g} pixels to read", max(strip, level.sizes["c"] * level.dtype.itemsize * pixels)
    problems.add(
        f"`image_key` needs an image that fits in memory, but images/{image_key}, {extent}, has {bins}: they need "
        f"{needed / 1e9:,.1f} GB, {there}. Keep the part under the spots: {_crop_to_spots(element, spots, xy)}.",
        ValueError,
    )


def _nice(length: float) -> float:
    """Round up to 1, 2 or 5 times a power of ten."""
    power = 10.0 ** np.floor(log10(length) + 1e-9)
    return float(next(step * power for step in (1, 2, 5, 10) if step * power >= length * (1 - 1e-9)))


def _crop_to_spots(element: Any, spots: Paired, xy: np.ndarray) -> str:
    """Return code that crops a section to the extent of its spots and a margin."""
    margin = 0.1 * np.ptp(xy, axis=0).max() + 10
    corners = transform(affine(element, spots.coordinate_system), np.array([xy.min(0) - margin, xy.max(0) + margin]))
    low, high = ([ceil(value) for value in corner] for corner in (corners.min(0), corners.max(0)))
    return (
        f"`sdata = spatialdata.bounding_box_query(sdata, axes=('x', 'y'), min_coordinate={low}, max_coordinate={high}, "
        f"target_coordinate_system={spots.coordinate_system!r})`"
    )


# A scan that is cropped too closely loses a row or column of a Visium array (78 x 64 positions) at each border.
MAX_SHARE = 0.05
MIN_SPAN = 0.3  # smallest share of a side of the image that the spots of a section span


def keep_on_image(
    sdata: SpatialData, image_key: str, spots: Paired, xy: np.ndarray, table_key: str, problems: Problems
) -> Paired:
    """Keep the pairs with the centre of the spot on the image; add a problem if these are too few.

    Parameters
    ----------
    xy
        ``(n, 2)`` centres of all shapes in image pixels.
    """
    size = _size(sdata.images[image_key])
    on = _on(xy[spots.places], size)
    cut = _cut(sdata.images[image_key], image_key, spots)
    if on.mean() >= 1 - MAX_SHARE and cut:
        spots = replace(spots, left_out=(*spots.left_out, f"images/{image_key}: {cut}"))
    if on.all():
        return spots
    found = f"{(~on).sum():,} of {len(on):,} spots are outside the image of {size[0]:.0f} x {size[1]:.0f} pixels"
    if on.mean() >= 1 - MAX_SHARE:
        note = f"images/{image_key}: {found} and are left out"
        return replace(spots, rows=spots.rows[on], places=spots.places[on], left_out=(*spots.left_out, note))
    low, high = xy[spots.places].min(0), xy[spots.places].max(0)
    own = transform(np.linalg.inv(spots.spots_to_px), xy)[spots.places]
    remedy = (
        cut
        or next(_remedies(sdata, image_key, table_key, spots, own, on), None)
        or _crop(sdata, spots, own, size, on)
        or (
            f"No other coordinate system or image, and no exchange of axes, puts them on it. Compare "
            f"`spatialdata.get_extent(sdata[{image_key!r}], coordinate_system={spots.coordinate_system!r})` with that "
            f"of sdata[{spots.shapes_key!r}], and correct the transformation of the image."
        )
    )
    problems.add(
        f"images/{image_key}: needs the spots on it, but {found} (they span x {low[0]:.0f} to {high[0]:.0f}, y "
        f"{low[1]:.0f} to {high[1]:.0f}) in the coordinate system {spots.coordinate_system!r}. {remedy}"
    )
    return spots


def _size(image: Any) -> np.ndarray:
    finest = levels(image)[0]
    return np.array([finest.sizes["x"], finest.sizes["y"]])


def _on(xy: np.ndarray, size: np.ndarray) -> np.ndarray:
    return np.asarray(((xy >= 0) & (xy <= size)).all(1))


def _fits(xy: np.ndarray, size: np.ndarray) -> bool:
    """Return True if spots are on an image and not concentrated in a corner of it."""
    spread = (np.ptp(xy, axis=0) >= MIN_SPAN * size).any() or len(xy) < 10
    return bool(_on(xy, size).mean() >= 1 - MAX_SHARE and spread)


def _cut(image: Any, image_key: str, spots: Paired) -> str | None:
    """Return the remedy for an image whose pixel coordinates show a crop and whose transformation lacks the offset."""
    finest, cut = levels(image)[0], []
    for axis in ("x", "y"):
        at = np.asarray(finest.coords.get(axis, []))
        step = at[1] - at[0] if len(at) > 1 and at.dtype.kind in "iuf" else 0
        cut.append(float(np.rint(at[0] / step - 0.5)) if step > 0 and np.isfinite(at[:2]).all() else 0.0)
    if min(cut) < 0 or max(cut) < 1 or np.abs(spots.spots_to_px[:2, 2]).max() >= 0.5:
        return None
    # All systems at once, in a new dictionary, because `isel` shares the old one between both images.
    return (
        f"Its pixel coordinates begin at x = {cut[0]:g}, y = {cut[1]:g}, but its transformation has no such offset. If "
        f"it was cut from a larger image, call `from spatialdata.transformations import Sequence, Translation, "
        f"get_transformation, set_transformation; set_transformation(sdata[{image_key!r}], {{name: Sequence(["
        f"Translation({cut}, ('x', 'y')), one]) for name, one in get_transformation(sdata[{image_key!r}], "
        f"get_all=True).items()}}, set_all=True)`."
    )


def _remedies(
    sdata: SpatialData, image_key: str, table_key: str, spots: Paired, own: np.ndarray, on: np.ndarray
) -> Iterator[str]:
    """Yield remedies that put the spots on the image when tried; ``own`` are centres in the shapes' own coordinates."""
    image, key, system = sdata.images[image_key], spots.shapes_key, spots.coordinate_system
    size = _size(image)
    for name in systems(image).keys() & systems(spots.shapes).keys():
        to_px = _to_px(image, spots.shapes, name)
        if to_px is not None and _fits(transform(to_px, own), size):
            yield f"They are on it in another coordinate system: pass `coordinate_system={name!r}`."
    if on.mean() < 0.5 or _columns_along_y(transform(spots.spots_to_px, own)):
        yield from _axes(sdata, spots, own, size)
    for name, other in sorted(sdata.images.items(), key=lambda item: -_size(item[1]).prod()):
        if name == image_key or levels(other)[0].sizes["c"] not in (3, 4):
            continue
        chosen = choose_system(other, name, spots.shapes, key, None, Problems(""))
        to_px = None if chosen is None else _to_px(other, spots.shapes, chosen)
        if to_px is not None and _fits(transform(to_px, own), _size(other)):
            yield f"They are on another image: pass `image_key={name!r}`."
    for what, factor in _scale_factors(sdata.tables[table_key].uns):
        if _fits(transform(spots.spots_to_px, own) * factor, size):
            yield (
                f"They are on it if its pixels are those of {what}: call `from spatialdata.transformations import "
                f"Scale, Sequence, get_transformation, set_transformation; set_transformation(sdata[{image_key!r}], "
                f"Sequence([Scale([{1 / factor!r}, {1 / factor!r}], ('x', 'y')), "
                f"get_transformation(sdata[{image_key!r}], {system!r})]), {system!r})`."
            )


def _columns_along_y(xy: np.ndarray) -> bool:
    """Return True if rows of a hexagonal lattice run along y; Visium's rows run along x if the axes are right."""
    found = lattice(xy)
    return found.kind == "hexagonal" and abs(found.angle) > np.pi / 12


def _axes(sdata: SpatialData, spots: Paired, own: np.ndarray, size: np.ndarray) -> Iterator[str]:
    """Yield exchanges of the axes that put the shapes on the image."""
    key = spots.shapes_key
    if not isinstance(sdata[key], GeoDataFrame):
        return
    for words, (a, b, c, d) in (("x and y are exchanged", (0, 1, 1, 0)), ("the y axis points up", (1, 0, 0, -1))):
        if _fits(transform(spots.spots_to_px, own @ np.array([[a, b], [c, d]]).T), size):
            yield (
                f"They are on it if {words}: call `sdata[{key!r}].geometry = "
                f"sdata[{key!r}].geometry.affine_transform([{a}, {b}, {c}, {d}, 0, 0])`."
            )


def _to_px(image: Any, shapes: Any, system: str) -> np.ndarray | None:
    to, of = affine(image, system), affine(shapes, system)
    return np.linalg.inv(to) @ of if invertible(to) and invertible(of) else None


def _scale_factors(uns: Any) -> Iterator[tuple[str, float]]:
    """Yield scale factors of the smaller images, if the reader stored them."""
    libraries = uns.get("spatial")
    for library in libraries.values() if isinstance(libraries, dict) else ():
        factors = library.get("scalefactors") if isinstance(library, dict) else None
        for name in ("hires", "lowres"):
            factor = factors.get(f"tissue_{name}_scalef") if isinstance(factors, dict) else None
            if isinstance(factor, int | float | np.number) and 0 < factor < 1:
                yield f"the {name} image", float(factor)


def _crop(sdata: SpatialData, spots: Paired, own: np.ndarray, size: np.ndarray, on: np.ndarray) -> str | None:
    """Return the remedy for an image that shows a part of the section: keep the spots on it.

    A square lattice looks the same with its axes exchanged, so the message names both causes.
    """
    corners = transform(np.linalg.inv(spots.spots_to_px), np.array([[0, 0], size]))
    turned = np.abs(spots.spots_to_px[:2, :2])
    if on.mean() < 0.5 or min(turned[0, 1], turned[1, 0]) > 1e-9 * turned.max():
        return None
    (x0, y0), (x1, y1) = np.floor(corners.min(0)).astype(int), np.ceil(corners.max(0)).astype(int)
    key = spots.shapes_key
    crop = (
        f"If the image is a part of the section, its transformation needs the offset of the part cut off on the left "
        f"and above. If it has this offset, or nothing was cut off there, keep the spots on it: `sdata[{key!r}] = "
        f"sdata[{key!r}].cx[{x0}:{x1}, {y0}:{y1}]`."
    )
    known = lattice(transform(spots.spots_to_px, own)).kind == "hexagonal"
    exchange = None if known else next(_axes(sdata, spots, own, size), None)
    return f"{crop} {exchange}" if exchange else crop


# Tuned on the public sections of the data folder and 30 phantoms: under their spots the median brightness is at least
# 0.29 (0.39 on real sections), and the median of red minus green at least 0.015.
DARK = 0.25
GREEN = -0.03  # red minus green: haematoxylin and eosin absorb more green than red light
FLAT = 0.02  # range of the brightness below which an image shows nothing
ENOUGH = 30  # bins


def warn_of_doubts(image: Any, key: str, he: np.ndarray, grid: Grid, measurement: Measurement, pitch_um: float) -> None:
    """Log a warning if channels are not named as colours, or if the tissue does not look like H&E.

    Parameters
    ----------
    he
        ``(3, ny * k, nx * k)`` uint8, as read from ``image``.
    """
    strange = find_channels(levels(image)[0]).strange
    if strange:
        logger.warning(
            "images/%s: its channels are called %s, not red, green and blue; the first three are used as these. If "
            "it shows fluorescence, pass the H&E as `image_key=`",
            key,
            strange,
        )
    if seen := _unlike_he(he, grid, measurement, pitch_um):
        logger.warning(
            "images/%s: %s, as in fluorescence and not in H&E. It adds little to the maps; pass the H&E as "
            "`image_key=`",
            key,
            seen,
        )


def _unlike_he(he: np.ndarray, grid: Grid, measurement: Measurement, pitch_um: float) -> str:
    """Describe what is untypical of H&E, or return ""; black padding is not counted as background."""
    rgb = bin_colours(he, grid)
    light, covered = rgb.mean(0), measurement.coverage > 0
    if np.ptp(light) < FLAT or not covered.any():
        return ""
    beside = light[(light > 0) & ~near_spots(grid, measurement, 1.5 * pitch_um / grid.bin_um)]
    under, ground = float(np.median(light[covered])), float(np.median(beside)) if len(beside) >= ENOUGH else 1.0
    if under < DARK:
        return f"most spots are on dark areas ({under:.0%} of white)"
    if ground < min(DARK, under):
        return f"it is dark outside the spots ({ground:.0%} of white, and {under:.0%} under spots)"
    if np.median((rgb[0] - rgb[1])[covered]) < GREEN:
        return "it is more green than red under most spots"
    return ""
