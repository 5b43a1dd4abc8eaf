"""Bins as squares, for tools that want vectors."""

from __future__ import annotations

import geopandas as gpd
import shapely
from spatialdata import SpatialData
from spatialdata.models import ShapesModel
from spatialdata.transformations import get_transformation

from hadmst_sc.contract import OutputNames
from hadmst_sc.io.problems import MissingKeyError
from hadmst_sc.io.resolve import result_table


def bins_to_shapes(sdata: SpatialData, *, key_added: str = "superres", shapes_key: str | None = None) -> str:
    """Add the bins of a result as squares, one per row of its table and under the same ids.

    Labels, which the table annotates, are a tenth of the size and drawn faster; squares are for tools that measure
    distances, intersect with annotations or export polygons.

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
    The name. The squares are in bins, with the transformations of the labels, and indexed by ``bin_id``.

    Raises
    ------
    KeyError
        If there is no such result.
    ValueError
        If ``shapes_key`` is the name of another element.

    Examples
    --------
    On the section of the example of :func:`hadmst_sc.tl.superresolve`:

    >>> hd.tl.bins_to_shapes(sdata)
    'superres_squares'
    """
    names, name = OutputNames(key_added), shapes_key or f"{key_added}_squares"
    table = result_table(sdata, key_added)
    if names.bins not in sdata.labels:
        raise MissingKeyError(f"labels/{names.bins}: is gone. Call `tl.superresolve(..., overwrite=True)` again.")
    if name in sdata and name not in sdata.shapes:
        raise ValueError(f"`shapes_key={name!r}` is taken by another element. Pass another name.")
    labels = sdata.labels[names.bins]
    row, column = (table.obs[name].to_numpy() for name in ("array_row", "array_col"))
    boxes = shapely.box(column, row, column + 1, row + 1)
    squares = gpd.GeoDataFrame(geometry=boxes, index=table.obs["bin_id"].to_numpy())
    sdata.shapes[name] = ShapesModel.parse(squares, transformations=get_transformation(labels, get_all=True))
    return name
