"""Read cells or nuclei of a SpatialData object onto a grid of bins."""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely
from scipy import sparse
from spatialdata import SpatialData

from hadmst_sc.io.read import computed_here
from hadmst_sc.io.resolve import affine, levels, systems, transform
from hadmst_sc.io.tissue import outlines
from hadmst_sc.section.cells import Cells
from hadmst_sc.section.errors import Problems
from hadmst_sc.section.observation import Observation

ROWS_AT_ONCE = 1024  # rows of labels, so that memory does not grow with the image


@computed_here()
def read_cells(sdata: SpatialData, cells_key: str, obs: Observation, problems: Problems) -> Cells | None:
    """Cells of a section on its grid; ``None`` after a problem.

    Parameters
    ----------
    sdata
        Holds the cells and the image.
    cells_key
        Shapes (polygons, circles or points), points, or labels.
    obs
        The section, as read from ``sdata``.
    problems
        Collects problems: a missing or ambiguous name, no shared coordinate system, no cell on the image.
    """
    kinds = [kind for kind in ("shapes", "labels", "points") if cells_key in getattr(sdata, kind)]
    if not kinds:
        available = [*sdata.shapes, *sdata.labels, *sdata.points]
        problems.missing("cells_key", cells_key, "sdata", available)
        return None
    source = obs.source
    assert source is not None  # for types: it was read from `sdata`
    element, image = getattr(sdata, kinds[0])[cells_key], sdata.images[source.image_key]
    shared = [name for name in (source.coordinate_system, *systems(image)) if name in systems(element)]
    if not shared:
        problems.add(
            f"`cells_key={cells_key!r}` shares no coordinate system with images/{source.image_key}: it has "
            f"{list(systems(element))}, the image {list(systems(image))}. Call "
            f"`spatialdata.transformations.set_transformation` with "
            f"`to_coordinate_system={source.coordinate_system!r}`."
        )
        return None
    scale = np.diag([1 / obs.grid.px_per_bin] * 2 + [1.0])
    to_bins = scale @ np.linalg.inv(affine(image, shared[0])) @ affine(element, shared[0])
    found = cells_on_grid(element, kinds[0], to_bins, obs.grid.shape, cells_key)
    if not found.overlap.nnz:
        problems.add(
            f"`cells_key={cells_key!r}`: none of its {len(found.ids):,} cells lies on images/{source.image_key}. Check "
            f"its transformation to {shared[0]!r}, or pass `cells_key=None`."
        )
        return None
    return found


def cells_on_grid(element: Any, kind: str, to_bins: np.ndarray, shape: tuple[int, int], key: str) -> Cells:
    """Cells of an element on a grid; ``to_bins`` is the ``(3, 3)`` affine from its coordinates (x, y, 1) to bins."""
    if kind == "labels":
        return Cells(key, *_of_labels(levels(element)[0], to_bins, shape), areal=True)
    if kind == "points":
        points = element[["x", "y"]].compute()
        return Cells(key, points.index.to_numpy(), _of_points(points.to_numpy(float), to_bins, shape), areal=False)
    shapes = outlines(element)
    if (shapes.geom_type == "Point").any():
        xy = np.c_[shapes.centroid.x, shapes.centroid.y]
        return Cells(key, element.index.to_numpy(), _of_points(xy, to_bins, shape), areal=False)
    return Cells(key, element.index.to_numpy(), overlap(on_bins(shapes, to_bins), shape), areal=True)


def on_bins(shapes: Any, to_bins: np.ndarray) -> Any:
    """Valid outlines in bins; those of segmented cells may cross themselves."""
    return shapes.affine_transform([*to_bins[:2, :2].ravel(), *to_bins[:2, 2]]).make_valid()


def overlap(shapes: Any, shape: tuple[int, int]) -> sparse.csr_array:
    """Share of each bin of a grid that each shape covers, ``(shapes, bins)``; exact areas."""
    ny, nx = shape
    geometries = shapes.to_numpy()
    low_x, low_y, high_x, high_y = shapely.bounds(geometries).T
    first_x, first_y = (np.nan_to_num(np.floor(low)).clip(0, None).astype(int) for low in (low_x, low_y))
    wide = np.nan_to_num(np.ceil(high_x), nan=-1).clip(None, nx).astype(int) - first_x
    high = np.nan_to_num(np.ceil(high_y), nan=-1).clip(None, ny).astype(int) - first_y
    n = np.where(shapely.is_empty(geometries) | shapely.is_missing(geometries), 0, wide.clip(0) * high.clip(0))
    cell = np.repeat(np.arange(len(geometries)), n)
    number = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)  # of the bin within the bounds of its shape
    y, x = np.divmod(number, np.maximum(wide, 1)[cell])
    y, x = y + first_y[cell], x + first_x[cell]
    area = shapely.area(shapely.intersection(geometries[cell], shapely.box(x, y, x + 1, y + 1)))
    found = sparse.coo_array((area, (cell, y * nx + x)), (len(geometries), ny * nx)).tocsr()
    found.eliminate_zeros()
    return found


def _of_points(xy: np.ndarray, to_bins: np.ndarray, shape: tuple[int, int]) -> sparse.csr_array:
    x, y = np.floor(transform(to_bins, xy)).T
    on = (x >= 0) & (y >= 0) & (x < shape[1]) & (y < shape[0])
    where = (y[on] * shape[1] + x[on]).astype(int)
    return sparse.coo_array((np.ones(on.sum()), (np.flatnonzero(on), where)), (len(xy), shape[0] * shape[1])).tocsr()


def _of_labels(labels: Any, to_bins: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, sparse.csr_array]:
    """Ids, and share of each bin by counting pixels; bins are several pixels wide."""
    found: list[np.ndarray] = []  # of each part: label, bin, number of pixels
    for start in range(0, len(labels), ROWS_AT_ONCE):
        values = np.asarray(labels.data[start : start + ROWS_AT_ONCE])
        row, column = np.nonzero(values)
        x, y = np.floor(transform(to_bins, np.c_[column, row + start] + 0.5)).T
        on = (x >= 0) & (y >= 0) & (x < shape[1]) & (y < shape[0])
        pairs = np.c_[values[row[on], column[on]].astype(np.int64), (y[on] * shape[1] + x[on]).astype(np.int64)]
        pairs, times = np.unique(pairs, axis=0, return_counts=True)
        found.append(np.c_[pairs, times])
    label, bins, n = np.concatenate(found).T
    names, cell = np.unique(label, return_inverse=True)
    pixel = abs(np.linalg.det(to_bins[:2, :2]))  # area in bins
    values = n * pixel
    return names, sparse.coo_array((values, (cell, bins)), (len(names), shape[0] * shape[1])).tocsr()
