"""Spots outside the image: a few are excluded; for many, likely corrections are tried and one that fits suggested."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from geopandas import GeoDataFrame
from spatialdata import SpatialData

from hadmst_sc.io.lattice import lattice
from hadmst_sc.io.resolve import Paired, affine, choose_system, invertible, levels, systems, transform
from hadmst_sc.section.errors import Problems

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
