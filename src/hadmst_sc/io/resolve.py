"""Resolve names to elements, region and coordinate system, and to one affine map from spots to image pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
import xarray as xr
from geopandas import GeoDataFrame, points_from_xy
from spatialdata import SpatialData
from spatialdata.transformations import get_transformation, set_transformation

from hadmst_sc.io.match import KIND, match, place, table_regions
from hadmst_sc.section.errors import MissingKeyError, Problems
from hadmst_sc.section.observation import PROVENANCE_KEY

XY = ("x", "y")
DISC = 5  # smallest diameter in pixels at which a disc can be distinguished from a square
TO_SPOTS = "If these are cells, sum them to spots with `hadmst_sc.pp.degrade` and `hadmst_sc.pp.add_spots`."


@dataclass(frozen=True, eq=False)
class Paired:
    """Spots and image in one coordinate system.

    Parameters
    ----------
    rows, places
        Row of the table and row of the shapes element of each spot, in the order of the shapes.
    spots_to_px
        ``(3, 3)`` affine on (x, y, 1), from the shapes' own coordinates to pixels of the finest image level.
    left_out
        One sentence for each reason why rows are left out.
    """

    shapes_key: str
    shapes: Any
    coordinate_system: str
    rows: np.ndarray
    places: np.ndarray
    spots_to_px: np.ndarray
    left_out: tuple[str, ...] = ()


def levels(element: xr.DataArray | xr.DataTree) -> list[xr.DataArray]:
    """Return the pyramid of a raster element, finest level first; a plain image is a pyramid of one level."""
    if not isinstance(element, xr.DataTree):
        return [element]
    found = [next(iter(node.ds.data_vars.values())) for node in element.children.values() if node.ds.data_vars]
    return sorted(found, key=lambda level: -level.sizes["x"] * level.sizes["y"])


def systems(element: Any) -> dict[str, Any]:
    """Return transformations of an element by coordinate system; empty if it has none."""
    try:
        return dict(get_transformation(element, get_all=True))
    except (AssertionError, KeyError, TypeError, ValueError):  # spatialdata's errors if there are none
        return {}


def affine(element: Any, coordinate_system: str) -> np.ndarray:
    """Return the ``(3, 3)`` affine on (x, y, 1) from an element's own coordinates to ``coordinate_system``."""
    transformation = get_transformation(element, to_coordinate_system=coordinate_system)
    return np.asarray(transformation.to_affine_matrix(XY, XY), float)


def transform(matrix: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Apply an affine to ``(n, 2)`` points (x, y)."""
    return np.asarray(xy, float) @ matrix[:2, :2].T + matrix[:2, 2]


def invertible(matrix: np.ndarray) -> bool:
    """Return True if an affine is finite and not singular, whatever its unit."""
    if not np.isfinite(matrix).all():
        return False
    stretch = np.linalg.svd(matrix[:2, :2], compute_uv=False)
    return bool(stretch[1] > 1e-9 * stretch[0])


def pair(
    sdata: SpatialData,
    image_key: str,
    table_key: str,
    shapes_key: str | None,
    coordinate_system: str | None,
    problems: Problems,
) -> Paired | None:
    """Resolve shapes and coordinate system, and match rows of the table to shapes; ``None`` after a problem."""
    image, table = sdata.images[image_key], sdata.tables[table_key]
    if PROVENANCE_KEY in table.uns:
        made_from = table.uns[PROVENANCE_KEY].get("table_key") if isinstance(table.uns[PROVENANCE_KEY], dict) else None
        remedy = f"`table_key={made_from!r}`" if made_from in sdata.tables else "the table that it was made from"
        problems.add(
            f"`table_key` needs a table of counts at spots, but {table_key!r} holds results of an earlier run. "
            f"Pass {remedy}."
        )
        return None
    keys = table_regions(sdata, table, table_key, problems)
    if keys is None:
        return None
    regions, *columns = keys
    shapes_key = _choose_shapes(sdata, image, image_key, table_key, regions, shapes_key, problems)
    if shapes_key is None:
        return None
    shapes = _vectors(sdata[shapes_key], shapes_key, problems)
    if shapes is None:
        return None
    coordinate_system = choose_system(image, image_key, shapes, shapes_key, coordinate_system, problems)
    matched = match(table, table_key, shapes, shapes_key, (columns[0], columns[1]), problems)
    if coordinate_system is None or matched is None:
        return None
    image_affine, own_affine = affine(image, coordinate_system), affine(shapes, coordinate_system)
    for kind, key, matrix in (
        ("images", image_key, image_affine),
        (shapes.attrs.get(KIND, "shapes"), shapes_key, own_affine),
    ):
        if not invertible(matrix):
            problems.add(f"{kind}/{key}: {_not_invertible(key, matrix, coordinate_system, image, shapes)}")
    if not (invertible(image_affine) and invertible(own_affine)):
        return None
    rows, places, left_out = matched
    spots_to_px = np.linalg.inv(image_affine) @ own_affine
    return Paired(shapes_key, shapes, coordinate_system, rows, places, spots_to_px, tuple(left_out))


def _not_invertible(key: str, matrix: np.ndarray, system: str, image: Any, shapes: Any) -> str:
    """Describe the error in a transformation, and its remedy: another system, or code that sets a new one."""
    found = "is singular" if np.isfinite(matrix).all() else "is not finite"
    shared = [name for name in systems(image) if name in systems(shapes) and name != system]
    good = [name for name in shared if invertible(affine(image, name)) and invertible(affine(shapes, name))]
    remedy = (
        f"Pass `coordinate_system={good[0]!r}`."
        if good
        else f"Set a new one; if the coordinates are those of {system!r}: `from spatialdata.transformations import "
        f"Identity, set_transformation; set_transformation(sdata[{key!r}], Identity(), {system!r})`."
    )
    return f"its transformation to {system!r} {found} and cannot be inverted: {matrix[:2].tolist()}. {remedy}"


def _choose_shapes(
    sdata: SpatialData,
    image: Any,
    image_key: str,
    table_key: str,
    regions: list[str],
    shapes_key: str | None,
    problems: Problems,
) -> str | None:
    """Return the region to use: the requested one, or the only one that shares a coordinate system with the image."""
    if shapes_key is not None:
        if shapes_key not in sdata:
            problems.missing("shapes_key", shapes_key, "sdata.shapes", list(sdata.shapes))
            return None
        if shapes_key not in regions:
            problems.add(
                f"`shapes_key` needs a region of table {table_key!r}, one of {regions}, but is {shapes_key!r}.",
                ValueError,
            )
            return None
    else:
        present = [region for region in regions if region in sdata]
        sharing = [region for region in present if systems(sdata[region]).keys() & systems(image).keys()]
        if not present:
            problems.missing("shapes_key", regions[0], "sdata.shapes", list(sdata.shapes))
            return None
        if len(sharing) > 1:
            problems.add(
                f"`shapes_key` is needed: table {table_key!r} annotates {sharing}, which all share a coordinate system "
                f"with {image_key!r}. Pass `shapes_key={sharing[0]!r}`."
            )
            return None
        shapes_key = (sharing or present)[0]
    if not any(shapes_key in kind for kind in (sdata.shapes, sdata.points, sdata.labels)):
        problems.add(
            f"`shapes_key` needs shapes, points or labels, but {shapes_key!r} is none of them. Only footprints of "
            f"known size can be summed over bins. Available: {[one for one in regions if one in sdata.shapes]}."
        )
        return None
    return shapes_key


def _vectors(element: Any, key: str, problems: Problems) -> Any:
    """Return shapes unchanged, and lazy points or labels as shapes with their ids and transformations."""
    if isinstance(element, GeoDataFrame):
        return element
    if isinstance(element, xr.DataArray | xr.DataTree):
        vectors = spots_of_labels(np.asarray(levels(element)[0].data), key, problems)
    else:
        points = element[list(XY)].compute()
        vectors = GeoDataFrame(geometry=points_from_xy(points["x"], points["y"]), index=points.index)
    if vectors is not None and systems(element):
        set_transformation(vectors, systems(element), set_all=True)
    if vectors is not None:
        vectors.attrs[KIND] = "labels" if isinstance(element, xr.DataArray | xr.DataTree) else "points"
    return vectors


def choose_system(
    image: Any, image_key: str, shapes: Any, shapes_key: str, asked: str | None, problems: Problems
) -> str | None:
    """Return the coordinate system that both elements share; if several, the one with the spots' own coordinates."""
    of_image, of_shapes = systems(image), systems(shapes)
    shared = [name for name in of_image if name in of_shapes]
    if not shared:
        problems.add(
            f"images/{image_key}: has the coordinate systems {list(of_image)}, but {place(shapes, shapes_key)} has "
            f"{list(of_shapes)}; one must be shared. Call `spatialdata.transformations.set_transformation("
            f"sdata[{image_key!r}], transformation, to_coordinate_system={next(iter(of_shapes), 'global')!r})`."
        )
        return None
    if asked is not None:
        if asked not in shared:
            problems.add(
                f"`coordinate_system={asked!r}` is not shared by {image_key!r} and {shapes_key!r}. Available: "
                f"{shared}. Try `coordinate_system={shared[0]!r}`.",
                MissingKeyError,
            )
            return None
        return asked
    identity = [name for name in shared if np.allclose(affine(shapes, name), np.eye(3))]
    best = identity if len(identity) == 1 else shared
    if len(best) > 1:
        problems.add(
            f"`coordinate_system` is needed: {image_key!r} and {shapes_key!r} share {shared}. "
            f"Pass `coordinate_system={shared[0]!r}`."
        )
        return None
    return best[0]


def spots_of_labels(values: np.ndarray, key: str, problems: Problems) -> GeoDataFrame | None:
    """Return squares or circles in pixels of ``(y, x)`` labels, indexed by id; ``None`` after a problem."""
    row, col = np.nonzero(values)
    order = np.argsort(values[row, col], kind="stable")
    row, col = row[order], col[order]
    ids, first, n = np.unique(values[row, col], return_index=True, return_counts=True)
    if not len(ids):
        problems.add(f"labels/{key}: needs the spots' ids as pixels, but all pixels are 0. {TO_SPOTS}")
        return None
    low, high = (
        np.c_[one.reduceat(col, first), one.reduceat(row, first)] for one in (np.minimum, np.maximum)
    )  # (x, y) of the corner pixels
    size = high + 1 - low
    width = size.mean()
    alike = np.ptp(size) <= 1 or np.ptp(size) <= 0.1 * width  # borders are rounded to pixels
    filled = n / size.prod(1)
    middle = low + size / 2
    if alike and (filled == 1).all():
        half = width / 2
        shapes = GeoDataFrame(geometry=shapely.box(*(middle - half).T, *(middle + half).T), index=ids.astype(np.int64))
    elif alike and width >= DISC and (np.abs(filled - np.pi / 4) < 0.1).all():
        shapes = GeoDataFrame({"radius": np.sqrt(n.mean() / np.pi)}, geometry=shapely.points(middle), index=ids)
    else:
        problems.add(
            f"labels/{key}: needs squares or discs of one size, but its {len(ids):,} labels have {n.min():,} to "
            f"{n.max():,} pixels or another form. Only footprints of known size can be summed over bins. {TO_SPOTS}"
        )
        return None
    return shapes
