"""Which elements, which region, which coordinate system: from names to one affine map, spots to image pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from anndata import AnnData
from geopandas import GeoDataFrame, points_from_xy
from spatialdata import SpatialData
from spatialdata.models import get_table_keys
from spatialdata.transformations import get_transformation, set_transformation

from hadmst_sc.io.problems import MissingKeyError, Problems, logger

XY = ("x", "y")


@dataclass(frozen=True, eq=False)
class Paired:
    """Spots and image in one coordinate system.

    Parameters
    ----------
    rows, places
        Row of the table and row of the shapes element of each spot, in the order of the shapes.
    spots_to_px
        ``(3, 3)`` affine on (x, y, 1), from the shapes' own coordinates to pixels of the finest image level.
    """

    shapes_key: str
    shapes: Any
    coordinate_system: str
    rows: np.ndarray
    places: np.ndarray
    spots_to_px: np.ndarray


def levels(element: xr.DataArray | xr.DataTree) -> list[xr.DataArray]:
    """Pyramid of a raster element, finest first; a plain image is a pyramid of one."""
    if not isinstance(element, xr.DataTree):
        return [element]
    found = [next(iter(node.ds.data_vars.values())) for node in element.children.values() if node.ds.data_vars]
    return sorted(found, key=lambda level: -level.sizes["x"] * level.sizes["y"])


def systems(element: Any) -> dict[str, Any]:
    """Transformations of an element by coordinate system; empty when it has none."""
    try:
        return dict(get_transformation(element, get_all=True))
    except (AssertionError, KeyError, TypeError, ValueError):  # how spatialdata reports that there are none
        return {}


def affine(element: Any, coordinate_system: str) -> np.ndarray:
    """``(3, 3)`` affine on (x, y, 1) from an element's own coordinates to ``coordinate_system``."""
    transformation = get_transformation(element, to_coordinate_system=coordinate_system)
    return np.asarray(transformation.to_affine_matrix(XY, XY), float)


def transform(matrix: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Apply an affine to ``(n, 2)`` points (x, y)."""
    return np.asarray(xy, float) @ matrix[:2, :2].T + matrix[:2, 2]


def table_regions(table: AnnData, table_key: str, problems: Problems) -> tuple[list[str], str, str] | None:
    """Regions a table annotates and the names of its region and instance columns."""
    try:
        region, region_key, instance_key = get_table_keys(table)
    except (ValueError, KeyError):
        problems.add(
            f"tables/{table_key}: needs to annotate the spots, but names no region. Call `sdata."
            f"set_table_annotates_spatialelement({table_key!r}, region=..., region_key=..., instance_key=...)`."
        )
        return None
    absent = [column for column in (region_key, instance_key) if column not in table.obs]
    if absent:
        problems.add(f"tables/{table_key}: its metadata name the columns {absent}, which are not in `obs`.")
        return None
    return [region] if isinstance(region, str) else list(region), region_key, instance_key


def pair(
    sdata: SpatialData,
    image_key: str,
    table_key: str,
    shapes_key: str | None,
    coordinate_system: str | None,
    problems: Problems,
) -> Paired | None:
    """Resolve shapes and coordinate system and match the table's rows to shapes; ``None`` after a problem."""
    image, table = sdata.images[image_key], sdata.tables[table_key]
    keys = table_regions(table, table_key, problems)
    if keys is None:
        return None
    regions, region_key, instance_key = keys
    shapes_key = _choose_shapes(sdata, image, image_key, table_key, regions, shapes_key, problems)
    if shapes_key is None:
        return None
    shapes = _vectors(sdata[shapes_key])
    coordinate_system = _choose_system(image, image_key, shapes, shapes_key, coordinate_system, problems)
    matched = _match(table, table_key, shapes.index, shapes_key, region_key, instance_key, problems)
    if coordinate_system is None or matched is None:
        return None
    image_affine = affine(image, coordinate_system)
    if abs(np.linalg.det(image_affine)) < 1e-12:
        problems.add(f"images/{image_key}: its transformation to {coordinate_system!r} cannot be inverted.")
        return None
    spots_to_px = np.linalg.inv(image_affine) @ affine(shapes, coordinate_system)
    return Paired(shapes_key, shapes, coordinate_system, *matched, spots_to_px)


def _choose_shapes(
    sdata: SpatialData,
    image: Any,
    image_key: str,
    table_key: str,
    regions: list[str],
    shapes_key: str | None,
    problems: Problems,
) -> str | None:
    """The region to use: the one asked for, or the only one that shares a coordinate system with the image."""
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
    if shapes_key not in sdata.shapes and shapes_key not in sdata.points:
        kind = "labels" if shapes_key in sdata.labels else "no shapes"
        problems.add(
            f"`shapes_key` needs circles, squares or points of a lattice, but {shapes_key!r} is {kind}. Only "
            f"footprints of known size can be summed over bins. Pass another `shapes_key=`, or make circles: "
            f"`sdata['circles'] = spatialdata.to_circles(sdata[{shapes_key!r}])` and "
            f"`sdata.set_table_annotates_spatialelement({table_key!r}, region='circles')`."
        )
        return None
    return shapes_key


def _vectors(element: Any) -> Any:
    """Shapes as they are; points, which lie on disk, as geometries with the same index and transformations."""
    if isinstance(element, GeoDataFrame):
        return element
    points = element[list(XY)].compute()
    vectors = GeoDataFrame(geometry=points_from_xy(points["x"], points["y"]), index=points.index)
    set_transformation(vectors, get_transformation(element, get_all=True), set_all=True)
    return vectors


def _choose_system(
    image: Any, image_key: str, shapes: Any, shapes_key: str, asked: str | None, problems: Problems
) -> str | None:
    """The system both elements share; of several, the one in which the spots' own coordinates are used as they are."""
    of_image, of_shapes = systems(image), systems(shapes)
    shared = [name for name in of_image if name in of_shapes]
    if not shared:
        problems.add(
            f"images/{image_key}: has the coordinate systems {list(of_image)}, but shapes/{shapes_key} has "
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


def _match(
    table: AnnData, table_key: str, index: Any, shapes_key: str, region_key: str, instance_key: str, problems: Problems
) -> tuple[np.ndarray, np.ndarray] | None:
    """Rows of the table and of the shapes that belong together, in the order of the shapes (an inner join)."""
    rows = np.flatnonzero((table.obs[region_key].astype(str) == shapes_key).to_numpy())
    ids = np.asarray(table.obs[instance_key])[rows]
    place = f"tables/{table_key}"
    if not len(rows):
        problems.add(f"{place}: no row has {shapes_key!r} in `obs[{region_key!r}]`; at least one spot is needed.")
        return None
    if not index.is_unique or len(set(ids.tolist())) < len(ids):
        where = f"shapes/{shapes_key}: its index" if not index.is_unique else f"{place}: `obs[{instance_key!r}]`"
        problems.add(f"{where} has duplicates, so counts and spots cannot be matched one to one.")
        return None
    places = index.get_indexer(ids)
    found = places >= 0
    if not found.any():
        problems.add(
            f"{place}: no value of `obs[{instance_key!r}]` is in the index of shapes/{shapes_key} (they start with "
            f"{ids.tolist()[0]!r} and {index.tolist()[0]!r}). They must be equal in value and type, for example "
            f"`sdata[{shapes_key!r}].index = table.obs[{instance_key!r}]`."
        )
        return None
    if not found.all():
        logger.warning(
            "%s: %d of %d rows have no spot in shapes/%s and are left out.", place, (~found).sum(), len(ids), shapes_key
        )
    rows, places = rows[found], places[found]
    order = np.argsort(places, kind="stable")
    return rows[order], places[order]
