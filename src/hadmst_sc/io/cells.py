"""Read cells or nuclei of a SpatialData object onto a grid of bins."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import shapely
from scipy import sparse
from spatialdata import SpatialData, to_polygons

from hadmst_sc.io.read import computed_here
from hadmst_sc.io.remedies import alike, he_of, set_identity
from hadmst_sc.io.resolve import affine, invertible, levels, systems, transform
from hadmst_sc.io.tissue import outlines
from hadmst_sc.runtime import side_by_side
from hadmst_sc.section.arguments import TEXT
from hadmst_sc.section.cells import Cells
from hadmst_sc.section.errors import MissingKeyError, Problems
from hadmst_sc.section.observation import Observation

KINDS = ("shapes", "labels", "points")
PIXELS_AT_ONCE = 2**23  # of labels, so that memory does not grow with the image
SHAPES_AT_ONCE = 2048  # the same for shapes
FINE = 0.25  # of a bin: larger pixels of labels are divided, so that areas are right
LARGEST_ID = 2**63 - 1
POINT_UM = 6.0  # width at which cells without an area are drawn
Placed = tuple[np.ndarray, sparse.csr_array, bool, np.ndarray]  # ids, overlap, areal, centres


def cells_of(sdata: SpatialData, cells_key: str, obs: Observation, problems: Problems) -> Cells | None:
    """Cells of a section on the grid of its observation; ``None`` after a problem. See :func:`read_cells`."""
    source = obs.source
    assert source is not None  # for types: it was read from `sdata`
    image = sdata.images[source.image_key]
    scale = np.diag([1 / obs.grid.px_per_bin] * 2 + [1.0])
    return read_cells(
        sdata,
        cells_key,
        f"images/{source.image_key}",
        [source.coordinate_system, *systems(image)],
        lambda system: scale @ np.linalg.inv(affine(image, system)),
        obs.grid.shape,
        problems,
    )


@computed_here()
def read_cells(
    sdata: SpatialData,
    cells_key: str,
    frame: str,
    available: Sequence[str],
    to_bins: Callable[[str], np.ndarray],
    shape: tuple[int, int],
    problems: Problems,
    parameter: str = "cells_key",
) -> Cells | None:
    """Cells on a grid of bins; ``None`` after a problem.

    Parameters
    ----------
    sdata
        Holds the cells.
    cells_key
        Shapes (polygons, circles or points), points, or labels.
    frame
        Name of the element that the grid belongs to, for messages.
    available
        Coordinate systems of that element, the preferred one first.
    to_bins
        Returns the ``(3, 3)`` affine on (x, y, 1) from one of them to bins.
    shape
        ``(ny, nx)`` of the grid.
    problems
        Collects problems: of name, kind, ids, radii, transformation, or no cell on the grid.
    parameter
        Name of the argument that names the cells, for messages.
    """
    placed = _find(sdata, cells_key, frame, available, problems, parameter)
    if placed is None:
        return None
    element, kind, system, matrix = placed
    of_kind = {"shapes": _of_shapes, "labels": _of_labels, "points": _of_points}[kind]
    place = to_bins(system) @ matrix
    found = Cells(cells_key, *of_kind(element, place, shape), digest=_digest(element, kind), place=place)
    if not len(found.ids) or not found.overlap.nnz:
        cause = f"none of its {len(found.ids):,} cells lies on {frame}. Check its transformation to {system!r}"
        problems.add(
            f"`{parameter}={cells_key!r}`: {cause if len(found.ids) else 'it holds no cells. Pass other ones'}."
        )
        return None
    return found


@computed_here()
def read_outlines(
    sdata: SpatialData,
    cells_key: str,
    frame: str,
    available: Sequence[str],
    to_um: Callable[[str], np.ndarray],
    problems: Problems,
) -> tuple[np.ndarray, list[np.ndarray]] | None:
    """Names and outlines of cells, to draw them; ``None`` after a problem.

    An outline is ``(corners, 2)`` as (x, y), in the µm of ``to_um``. A cell of several parts has several outlines, a
    point is drawn as a circle. The other arguments are as in :func:`read_cells`.
    """
    placed = _find(sdata, cells_key, frame, available, problems)
    if placed is None:
        return None
    element, kind, system, matrix = placed
    matrix = to_um(system) @ matrix
    if kind == "points":
        element = element[["x", "y"]].compute()
        shapes = shapely.points(element.to_numpy(float))
    else:
        element = to_polygons(element) if kind == "labels" else element
        shapes = element.geometry.to_numpy().copy()
    if (circles := shapely.get_type_id(shapes) == 0).any():
        size = POINT_UM / 2 / np.sqrt(abs(np.linalg.det(matrix[:2, :2])))
        radii = np.broadcast_to(element["radius"] if "radius" in element else size, len(shapes))
        shapes[circles] = shapely.buffer(shapes[circles], radii[circles], quad_segs=6)
    parts, of = shapely.get_parts(shapes, return_index=True)
    areas = (shapely.get_type_id(parts) == 3) & ~shapely.is_empty(parts)
    if not areas.any():
        problems.add(f"`cells_key={cells_key!r}`: it holds no cells. Pass other ones.")
        return None
    xy, number = shapely.get_coordinates(shapely.get_exterior_ring(parts[areas]), return_index=True)
    outlines = np.split(transform(matrix, xy), np.flatnonzero(np.diff(number)) + 1)
    return element.index.to_numpy()[of[areas]], outlines


def _find(
    sdata: SpatialData,
    cells_key: str,
    frame: str,
    available: Sequence[str],
    problems: Problems,
    parameter: str = "cells_key",
) -> tuple[Any, str, str, np.ndarray] | None:
    """An element of cells, its kind, and a coordinate system of the frame with the affine to it."""
    if not TEXT.is_met(cells_key) or not any(cells_key in getattr(sdata, kind) for kind in KINDS):
        where = "sdata.shapes, sdata.labels or sdata.points"
        names = [name for kind in KINDS for name in getattr(sdata, kind)]
        if close := alike(str(cells_key), names):
            remedy = f"Pass `cells_key={close!r}`."
        else:
            remedy = (
                f"To find nuclei: `hadmst_sc.pp.find_nuclei(sdata, {he_of(sdata)!r})`, then pass `cells_key='nuclei'`."
            )
        problems.add(f"`cells_key={cells_key!r}` is not in `{where}`. Available: {names}. {remedy}", MissingKeyError)
        return None
    kind = next(kind for kind in KINDS if cells_key in getattr(sdata, kind))
    element = getattr(sdata, kind)[cells_key]
    told = f"`{parameter}={cells_key!r}`"
    shared = [name for name in available if name in systems(element)]
    if not shared:
        problems.add(
            f"{told} shares no coordinate system with {frame}: it has {list(systems(element))}, {frame} has "
            f"{list(dict.fromkeys(available))}. {set_identity(cells_key, available[0])}"
        )
        return None
    matrix = affine(element, shared[0])
    if not invertible(matrix):
        problems.add(
            f"{told}: its transformation to {shared[0]!r} is not finite or singular: {matrix[:2].tolist()}. Correct it."
        )
        return None
    if wrong := _wrong(element, kind, cells_key):
        problems.add(f"{told} {wrong}")
        return None
    return element, kind, shared[0], matrix


def _wrong(element: Any, kind: str, key: str) -> str | None:
    """Describe cells that cannot be used, with a remedy; ``None`` if they can."""
    if kind == "labels":
        return None
    ids = element.index.compute() if kind == "points" else element.index
    remedy = f"Call `sdata[{key!r}].index = range(len(sdata[{key!r}]))`."
    if kind == "points":
        remedy = f"Call `sdata[{key!r}] = sdata[{key!r}].reset_index(drop=True)`, with its partitions as one."
    if ids.has_duplicates:
        twice = ids[ids.duplicated()].unique().tolist()[:5]
        return f"needs cells of different names, but has {twice} more than once. {remedy}"
    if isinstance(ids, pd.MultiIndex) or not (
        pd.api.types.is_integer_dtype(ids) or all(isinstance(one, str) for one in ids)
    ):
        return f"needs whole numbers or text as names of cells, but the index is of type {ids.dtype}. {remedy}"
    if kind == "points":
        return None
    if "radius" in element:
        bad = ~(pd.to_numeric(element["radius"], errors="coerce") > 0) & (element.geom_type == "Point")
        if bad.any():
            return (
                f"needs circles with a positive radius, but that of {bad.sum():,} of {len(element):,} is not, such as "
                f"{element['radius'][bad].iloc[0]!r}. "
                f"Call `sdata[{key!r}] = sdata[{key!r}][sdata[{key!r}].radius > 0]`."
            )
    without = int((outlines(element).geom_type == "Point").sum())
    if 0 < without < len(element):
        return (
            f"needs either points or areas, but {without:,} of its {len(element):,} shapes are points without a "
            f"radius. "
            f"Call `sdata[{key!r}] = sdata[{key!r}][sdata[{key!r}].geom_type != 'Point']`."
        )
    return None


def _digest(element: Any, kind: str) -> str:
    digest = hashlib.sha256()
    for one in _contents(element, kind):
        digest.update(np.ascontiguousarray(one).tobytes())
    return digest.hexdigest()[:16]


def _contents(element: Any, kind: str) -> Iterator[np.ndarray]:
    """All that tells cells from others, in parts of limited size."""
    if kind == "labels":
        level = levels(element)[0]
        yield np.array(level.shape)
        n_rows = max(1, PIXELS_AT_ONCE // level.shape[1])
        for start in range(0, level.shape[0], n_rows):
            yield np.asarray(level.data[start : start + n_rows]).astype(np.int64)
    elif kind == "points":
        yield element[["x", "y"]].compute().to_numpy(float)
    else:
        yield shapely.get_num_coordinates(element.geometry.to_numpy())
        yield shapely.get_coordinates(element.geometry.to_numpy())
        yield np.asarray(element.get("radius", 0.0), float)


def _of_shapes(element: Any, to_bins: np.ndarray, shape: tuple[int, int]) -> Placed:
    ids, shapes = element.index.to_numpy(), outlines(element)
    middle = shapes.centroid
    centres = transform(to_bins, np.c_[middle.x, middle.y])
    if (shapes.geom_type == "Point").any():
        return ids, _at(centres, shape), False, centres
    return ids, overlap(on_bins(shapes, to_bins), shape), True, centres


def _of_points(element: Any, to_bins: np.ndarray, shape: tuple[int, int]) -> Placed:
    points = element[["x", "y"]].compute()
    centres = transform(to_bins, points.to_numpy(float))
    return points.index.to_numpy(), _at(centres, shape), False, centres


def on_bins(shapes: Any, to_bins: np.ndarray) -> Any:
    """Valid outlines in bins; those of segmented cells may cross themselves."""
    return shapes.affine_transform([*to_bins[:2, :2].ravel(), *to_bins[:2, 2]]).make_valid()


def overlap(shapes: Any, shape: tuple[int, int]) -> sparse.csr_array:
    """Share of each bin of a grid that each shape covers, ``(shapes, bins)``; exact areas."""
    some = np.array_split(shapes.to_numpy(), 1 + len(shapes) // SHAPES_AT_ONCE)
    return sparse.vstack(side_by_side(lambda geometries: _overlap(geometries, shape), some), "csr")


def _overlap(geometries: np.ndarray, shape: tuple[int, int]) -> sparse.csr_array:
    ny, nx = shape
    low_x, low_y, high_x, high_y = shapely.bounds(geometries).T
    first_x, first_y = (np.nan_to_num(np.floor(low)).clip(0, None).astype(int) for low in (low_x, low_y))
    wide = np.nan_to_num(np.ceil(high_x), nan=-1).clip(None, nx).astype(int) - first_x
    high = np.nan_to_num(np.ceil(high_y), nan=-1).clip(None, ny).astype(int) - first_y
    n = np.where(shapely.is_empty(geometries) | shapely.is_missing(geometries), 0, wide.clip(0) * high.clip(0))
    cell = np.repeat(np.arange(len(geometries)), n)
    number = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)  # of the bin within the bounds of its shape
    y, x = np.divmod(number, np.maximum(wide, 1)[cell])
    y, x = y + first_y[cell], x + first_x[cell]
    bins, area = shapely.box(x, y, x + 1, y + 1), np.ones(len(x))
    shapely.prepare(geometries)
    cut = ~shapely.covers(geometries[cell], bins)  # an intersection takes long for large outlines
    area[cut] = shapely.area(shapely.intersection(geometries[cell[cut]], bins[cut]))
    found = sparse.coo_array((area, (cell, y * nx + x)), (len(geometries), ny * nx)).tocsr()
    found.eliminate_zeros()
    return found


def _at(centres: np.ndarray, shape: tuple[int, int]) -> sparse.csr_array:
    x, y = np.floor(centres).T
    on = (x >= 0) & (y >= 0) & (x < shape[1]) & (y < shape[0])
    where = (y[on] * shape[1] + x[on]).astype(int)
    return sparse.coo_array((np.ones(on.sum()), (np.flatnonzero(on), where)), (len(x), shape[0] * shape[1])).tocsr()


def _of_labels(element: Any, to_bins: np.ndarray, shape: tuple[int, int]) -> Placed:
    """By counting pixels; pixels wider than ``FINE`` bins are divided."""
    labels = levels(element)[0]
    n_bins, pixel = shape[0] * shape[1], abs(np.linalg.det(to_bins[:2, :2]))
    parts = int(np.ceil(np.sqrt(pixel) / FINE - 1e-9))
    steps = (np.arange(parts) + 0.5) / parts
    rows = max(1, PIXELS_AT_ONCE // (labels.shape[1] * parts**2))
    found: list[np.ndarray] = []  # of each part: bin, area, and sums of x and y
    of: list[np.ndarray] = []  # their ids, as floats are exact up to 2**53 only
    names = np.zeros(0, np.int64)  # of all cells, also of those beside the grid
    for start in range(0, labels.shape[0], rows):
        values = np.asarray(labels.data[start : start + rows])
        row, column = np.nonzero((values > 0) & (values <= LARGEST_ID))
        ids, position = np.unique(values[row, column].astype(np.int64), return_inverse=True)
        names = np.union1d(names, ids)
        for dy in steps:
            for dx in steps:
                xy = transform(to_bins, np.c_[column + dx, row + start + dy])
                x, y = np.floor(xy).astype(int).T
                on = (x >= 0) & (y >= 0) & (x < shape[1]) & (y < shape[0])
                key, where, n = np.unique(
                    position[on] * n_bins + y[on] * shape[1] + x[on], return_inverse=True, return_counts=True
                )
                sums = [np.bincount(where, xy[on, axis], len(key)) for axis in (0, 1)]
                found.append(np.stack([key % n_bins, n, *sums]).T)
                of.append(ids[key // n_bins])
    of_parts = np.concatenate([np.zeros((0, 4)), *found])
    cell = np.searchsorted(names, np.concatenate([np.zeros(0, np.int64), *of]))
    n = of_parts[:, 1]
    sums = [np.bincount(cell, of_parts[:, k], len(names)) for k in (2, 3)]
    with np.errstate(invalid="ignore"):  # NaN beside the grid
        centres = np.stack(sums, 1) / np.bincount(cell, n, len(names))[:, None]
    area = sparse.coo_array((n * pixel / parts**2, (cell, of_parts[:, 0].astype(int))), (len(names), n_bins))
    return names, area.tocsr(), True, centres
