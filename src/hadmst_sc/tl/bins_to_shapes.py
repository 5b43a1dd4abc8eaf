"""Bins as squares, for tools that need polygons."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import shapely
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, get_table_keys
from spatialdata.transformations import get_transformation

from hadmst_sc.io.result import find_result
from hadmst_sc.runtime import usual_errors
from hadmst_sc.section.arguments import is_element_name


@usual_errors
def bins_to_shapes(sdata: SpatialData, *, key_added: str = "superres", shapes_key: str | None = None) -> str:
    """Add the bins of a result as squares, with the ids of the labels that the table annotates.

    Labels are smaller and faster to draw; use squares to measure distances, intersect with annotations or export
    polygons.

    Parameters
    ----------
    sdata
        Holds the result; receives the squares, in memory (``sdata.write_element(name)`` keeps them).
    key_added
        Name of the result.
    shapes_key
        Name of the squares; by default ``<key_added>_squares``.

    Returns
    -------
    Name of the squares. Their unit is one bin, with the transformations of the labels; their index is ``bin_id``.

    Raises
    ------
    KeyError
        If there is no such result, or its labels are missing.
    ValueError
        If ``shapes_key`` is the name of another element; squares of an earlier call are replaced.

    Examples
    --------
    On the section of the example of :func:`hadmst_sc.tl.superresolve`:

    >>> hd.tl.bins_to_shapes(sdata)
    'superres_squares'
    """
    result, name = find_result(sdata, key_added), shapes_key if shapes_key is not None else f"{key_added}_squares"
    (rows, row, column), ids = result.places, result.table.obs[get_table_keys(result.table)[2]].to_numpy()
    if not is_element_name(name):
        raise ValueError(
            f"`shapes_key` needs letters, digits, '_', '-' and '.', no '.' or '__' at the start, but is {name!r}. "
            f"Pass `shapes_key='squares'`."
        )
    if name in sdata and not (name in sdata.shapes and _are_squares(sdata.shapes[name], ids)):
        raise ValueError(f"`shapes_key={name!r}` is taken by another element. Pass another name.")
    x, y = column + result.offset[0], row + result.offset[1]
    boxes = shapely.box(x, y, x + 1, y + 1)
    squares = gpd.GeoDataFrame(geometry=boxes, index=ids[rows])
    transformations = get_transformation(sdata.labels[result.region], get_all=True)
    sdata.shapes[name] = ShapesModel.parse(squares, transformations=transformations)
    return name


def _are_squares(shapes: gpd.GeoDataFrame, ids: np.ndarray) -> bool:
    """True if shapes come from an earlier call: squares of one bin, with these ids."""
    return bool(shapes.index.isin(ids).all() and (shapes.geometry.area == 1).all())
