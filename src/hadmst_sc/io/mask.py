"""A mask of the tissue that a user passes, labels or shapes, on the grid."""

from __future__ import annotations

from typing import Any

import numpy as np
from skimage.draw import polygon
from spatialdata import SpatialData

from hadmst_sc.grid import Grid
from hadmst_sc.io.problems import Problems
from hadmst_sc.io.resolve import affine, invertible, levels, systems
from hadmst_sc.io.values import numbers

DETECT = "Mend it, or pass `tissue_key=None`: the tissue is then detected."


def read_mask(
    sdata: SpatialData, key: str, image: Any, coordinate_system: str, grid: Grid, problems: Problems
) -> np.ndarray:
    """Labels or shapes on the grid, by bin centres through the transformations; all ``False`` after a problem."""
    empty = np.zeros(grid.shape, bool)
    if key not in sdata.labels and key not in sdata.shapes:
        problems.missing("tissue_key", key, "sdata.labels or sdata.shapes", [*sdata.labels, *sdata.shapes])
        return empty
    element = sdata[key]
    if key in sdata.shapes and (lost := _circles(element) & ~(_radii(element) > 0)).any():
        problems.add(
            f"`tissue_key={key!r}`: needs circles with a positive radius, but that of {lost.sum():,} of "
            f"{len(element):,} shapes is not, such as {element['radius'][lost].iloc[0]!r}. {DETECT}"
        )
        return empty
    if wrong := _nothing_in(element, is_labels=key in sdata.labels):
        problems.add(f"`tissue_key={key!r}`: needs areas that are tissue, but {wrong}. {DETECT}")
        return empty
    shared = [name for name in systems(image) if name in systems(element)]
    if not shared:
        problems.add(
            f"`tissue_key={key!r}`: shares no coordinate system with the image, which has {list(systems(image))}, but "
            f"has {list(systems(element))}. {DETECT}"
        )
        return empty
    # The image's transformation to the system of the spots is known to be good.
    good = [name for name in shared if invertible(affine(element, name)) and invertible(affine(image, name))]
    if not good:
        problems.add(
            f"`tissue_key={key!r}`: its transformation to {shared[0]!r} is not finite or singular: "
            f"{affine(element, shared[0])[:2].tolist()}. {DETECT}"
        )
        return empty
    name = coordinate_system if coordinate_system in good else good[0]
    bins_to_own = np.linalg.inv(affine(element, name)) @ affine(image, name) @ np.diag([grid.px_per_bin] * 2 + [1.0])
    mask = _labels(element, bins_to_own, grid) if key in sdata.labels else _shapes(element, bins_to_own, grid)
    if not mask.any():
        problems.add(
            f"`tissue_key={key!r}`: covers no bin of the image; check its transformation to {name!r}. {DETECT}"
        )
    return mask


def _nothing_in(element: Any, *, is_labels: bool) -> str | None:
    """Why an element has no area at all; ``None`` if it has."""
    if is_labels:
        pyramid = levels(element)
        return "it has no pixels" if not pyramid or 0 in pyramid[0].shape else None
    if not len(element):
        return "it has no shapes"
    outlines = _outlines(element)
    if not (np.isfinite(outlines.area) & (outlines.area > 0)).any():
        kinds = sorted({str(kind) for kind in element.geom_type})
        return f"its {len(element):,} shapes have no area ({', '.join(kinds)})"
    return None


def _circles(element: Any) -> np.ndarray:
    """``(n,)`` bool: points with a radius. That of a polygon is another column of the user."""
    return np.asarray((element.geom_type == "Point") & ~element.is_empty & ("radius" in element))


def _radii(element: Any) -> np.ndarray:
    """``(n,)`` radii; NaN where they are no finite numbers, or there are none."""
    radii = numbers(element["radius"]) if "radius" in element else np.full(len(element), np.nan)
    return np.where(np.isfinite(radii), radii, np.nan)


def _outlines(element: Any) -> Any:
    circles = _circles(element)
    return element.geometry.where(~circles, element.geometry.buffer(np.where(circles, _radii(element), 0)))


def _labels(element: Any, bins_to_own: np.ndarray, grid: Grid) -> np.ndarray:
    values = np.asarray(levels(element)[0].data) > 0
    yx = grid.centres() @ bins_to_own[1::-1, 1::-1].T + bins_to_own[1::-1, 2]
    row, col = np.floor(yx + 1e-9).astype(int).T
    on = (row >= 0) & (col >= 0) & (row < values.shape[0]) & (col < values.shape[1])
    mask = np.zeros(grid.n_bins, bool)
    mask[on] = values[row[on], col[on]]
    return mask.reshape(grid.shape)


def _shapes(element: Any, bins_to_own: np.ndarray, grid: Grid) -> np.ndarray:
    inverse = np.linalg.inv(bins_to_own)
    parts = _outlines(element).affine_transform([*inverse[:2, :2].ravel(), *inverse[:2, 2]])
    mask = np.zeros(grid.shape, bool)
    # A collection may hold lines and points beside polygons, and a line has no area.
    for part in parts.explode(index_parts=False).explode(index_parts=False):
        if part is None or part.geom_type != "Polygon" or part.is_empty:
            continue
        one = np.zeros(grid.shape, bool)
        for ring in (part.exterior, *part.interiors):
            x, y = np.asarray(ring.coords)[:, :2].T
            one[polygon(y - 0.5, x - 0.5, grid.shape)] ^= True  # skimage puts centres at whole numbers
        mask |= one
    return mask
