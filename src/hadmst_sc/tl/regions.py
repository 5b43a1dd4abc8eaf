"""Expected counts of regions, such as cells, glands or layers, with their intervals."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from anndata import AnnData
from scipy import sparse
from spatialdata import SpatialData

from hadmst_sc.io.resolve import affine, systems
from hadmst_sc.io.result import Result, again, find_result
from hadmst_sc.io.tissue import outlines
from hadmst_sc.runtime import usual_errors
from hadmst_sc.section.errors import MissingKeyError, logger
from hadmst_sc.trust.intervals import doubt, rate_interval
from hadmst_sc.trust.spread import Spread

DISPERSION = "dispersion"  # column of `var` that a run writes


@usual_errors
def regions(sdata: SpatialData, key: str, *, key_added: str = "superres") -> AnnData:
    """Expected counts of every gene in each region, with 90 % intervals.

    Adding up the bins of a region gives its counts, but adding up their standard deviations does not give its
    uncertainty: the errors of neighbouring bins are partly the same. This function knows how much they share.

    Parameters
    ----------
    sdata
        Holds the result. It is not changed.
    key
        Either a column of ``obs`` of the result's table, such as clusters or annotated layers, or the name of shapes,
        such as cells or drawn regions. A bin on the border of a shape counts by its share of area.
    key_added
        Name of the result.

    Returns
    -------
    A table with a row per region, in the order of the categories or shapes: ``X`` expected counts, ``layers["std"]``
    their standard deviation, ``layers["low"]`` and ``layers["high"]`` the interval that holds the true expected counts
    with a probability of 90 %. ``obs["n_bins"]`` is the area in bins in tissue; regions with none have zero counts.

    Raises
    ------
    KeyError
        If there is no such result, column or shapes, the shapes share no coordinate system with the result, or its
        table has lost the column ``dispersion`` of ``var``.
    ValueError
        If no region holds a bin.

    Examples
    --------
    On the section of the example of :func:`hadmst_sc.tl.superresolve`, halves of its table:

    >>> table = sdata.tables["superres_table"]
    >>> table.obs["half"] = np.where(table.obs["array_col"] < 15, "left", "right")
    >>> found = hd.tl.regions(sdata, "half")
    >>> found.shape, sorted(found.layers)
    ((2, 4), ['high', 'low', 'std'])
    """
    result = find_result(sdata, key_added)
    if DISPERSION not in result.table.var:
        raise MissingKeyError(f"tables/{result.table_key}: `var` lacks {DISPERSION!r}. {again(result)}")
    rows, y, x = result.places
    if key in result.table.obs:
        names, weights = _of_column(result.table.obs[key].iloc[rows])
    elif key in sdata.shapes:
        names, weights = _of_shapes(result, key, np.c_[x, y])
    else:
        raise MissingKeyError(
            f"`key={key!r}` needs a column of tables/{result.table_key} or the name of shapes, but is neither. "
            f"Columns: {list(result.table.obs)}; shapes: {list(sdata.shapes)}. For labels, pass shapes made by "
            f"`sdata.shapes['cells'] = spatialdata.to_polygons(sdata.labels['cells'])`."
        )
    if not weights.nnz:
        raise ValueError(f"`key={key!r}` needs a region in the tissue, but no bin of {result.key!r} lies in any.")
    if doubted := doubt(result.record):
        logger.warning("the intervals of regions may be too narrow or too wide: %s", doubted)
    mean = np.asarray(result.maps_at_bins(), float)
    pitch = float(result.provenance["pitch_um"]) / float(result.provenance["bin_um"])
    spread = Spread(result.table.var[DISPERSION].to_numpy(float), pitch)
    total, std = weights @ mean, spread.of_sums(mean, weights, np.c_[y, x])
    low, high = rate_interval(total, std)
    obs = pd.DataFrame({"n_bins": weights.sum(1)}, index=names)
    return AnnData(total, obs=obs, var=result.table.var.copy(), layers={"std": std, "low": low, "high": high})


def _of_column(values: pd.Series) -> tuple[list[str], sparse.csr_array]:
    """Names of the categories, and the bins of each; missing values belong to none."""
    found = values.astype("category")
    codes = found.cat.codes.to_numpy()
    inside = np.flatnonzero(codes >= 0)
    shape = (len(found.cat.categories), len(codes))
    weights = sparse.coo_array((np.ones(len(inside)), (codes[inside], inside)), shape)
    return [str(name) for name in found.cat.categories], weights.tocsr()


def _of_shapes(result: Result, key: str, corners: np.ndarray) -> tuple[list[str], sparse.csr_array]:
    """Names of the shapes, and the share of each bin in each; ``corners`` are the low ones of the bins, ``(n, 2)``."""
    element = result.sdata.shapes[key]
    shared = [
        name for name in (result.system, *systems(result.sdata.labels[result.region])) if name in systems(element)
    ]
    if not shared:
        raise MissingKeyError(
            f"shapes/{key}: shares no coordinate system with the result. It has {list(systems(element))}, the result "
            f"{list(systems(result.sdata.labels[result.region]))}. Call "
            f"`spatialdata.transformations.set_transformation` with `to_coordinate_system={result.system!r}`."
        )
    to_bins = np.linalg.inv(result.to_system(shared[0])) @ affine(element, shared[0])
    shapes = gpd.GeoSeries(outlines(element).affine_transform([*to_bins[:2, :2].ravel(), *to_bins[:2, 2]]))
    x, y = corners.T
    bins = shapely.box(x, y, x + 1, y + 1)
    shape, found = shapely.STRtree(bins).query(shapes.to_numpy(), predicate="intersects")
    area = shapely.area(shapely.intersection(shapes.to_numpy()[shape], bins[found]))
    weights = sparse.coo_array((area, (shape, found)), (len(shapes), len(bins))).tocsr()
    weights.eliminate_zeros()
    return [str(name) for name in element.index], weights
