"""Expected counts of regions, such as cells, glands or layers, with their intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from spatialdata import SpatialData
from spatialdata.models import TableModel

from hadmst_sc.io.cells import on_bins, overlap
from hadmst_sc.io.frame import systems_of, warn_beside_image
from hadmst_sc.io.read import computed_here
from hadmst_sc.io.remedies import alike, set_identity
from hadmst_sc.io.resolve import affine, systems
from hadmst_sc.io.result import Result, again, find_result
from hadmst_sc.io.tissue import outlines
from hadmst_sc.runtime import side_by_side, usual_errors
from hadmst_sc.section.errors import MissingKeyError, logger
from hadmst_sc.trust.intervals import LEVEL, doubt
from hadmst_sc.trust.spread import Spread
from hadmst_sc.trust.table import rate_quantiles

DISPERSION = "dispersion"  # column of `var` that a run writes
GENES_AT_ONCE = 16
MAX_BYTES = 4 * 2**30  # of a table of totals
LAYERS = 4  # estimate, standard deviation, two bounds


@usual_errors
def regions(sdata: SpatialData, key: str, *, key_added: str = "superres") -> AnnData:
    """Sum the expected counts of every gene over the bins of each region, with 90 % intervals.

    The errors of neighbouring bins are correlated, so their standard deviations do not add up. The intervals account
    for this correlation.

    Parameters
    ----------
    sdata
        Holds the result. It is not changed.
    key
        Either a column of ``obs`` of the result's table, such as clusters or annotated layers, or the name of shapes,
        such as cells or drawn regions. A bin on the border of a shape counts with the share of its area inside: counts
        are taken as uniform within a bin. Where shapes overlap, bins count for each.
    key_added
        Name of the result.

    Returns
    -------
    AnnData with one row per region, in the order of the categories or shapes; if they are shapes, it annotates them.
    ``X`` are expected counts, even if the table of the result was normalised. ``layers["std"]`` is their standard
    deviation, and the true expected counts are between ``layers["low"]`` and ``layers["high"]`` with a probability of
    90 %. ``obs["n_bins"]`` is the area of the region in tissue, in bins; where it is 0, the values are NaN.

    Raises
    ------
    KeyError
        If there is no such result, column or shapes, the shapes share no coordinate system with the result, or its
        table has lost its provenance or the column ``dispersion`` of ``var``.
    ValueError
        If ``key`` names both a column and shapes, the column is continuous, two regions have the same name, or no
        region contains a bin.

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
    check_record(result)
    rows = result.places[0]
    in_column, in_shapes = (
        isinstance(key, str) and key in result.table.obs,
        isinstance(key, str) and key in sdata.shapes,
    )
    if in_column and in_shapes:
        raise ValueError(
            f"`key={key!r}` is a column of tables/{result.table_key} and the name of shapes. Rename one of them, such "
            f"as by `sdata.shapes[{key + '_shapes'!r}] = sdata.shapes.pop({key!r})`."
        )
    if in_column:
        names, weights = _of_column(result.table.obs[key].iloc[rows], result.table_key)
    elif in_shapes:
        warn_beside_image(result)
        warn_if_partial(result)
        names, weights = _of_shapes(result, key)
        size = LAYERS * 8 * len(names) * result.table.n_vars
        if size > MAX_BYTES:
            raise ValueError(
                f"`key={key!r}`: {result.table.n_vars:,} genes of {len(names):,} shapes would be a table of "
                f"{size / 2**30:.0f} GB, and at most {MAX_BYTES / 2**30:.0f} GB are made at once. Call "
                f"`hadmst_sc.tl.to_cells(sdata, {key!r}, genes=...)`, which takes some of the genes."
            )
    else:
        raise MissingKeyError(
            f"`key={key!r}` needs a column of tables/{result.table_key} or the name of shapes, but is neither. "
            f"Columns: {list(result.table.obs)}; shapes: {list(sdata.shapes)}. {_other(result, key)}"
        )
    labels = pd.Index([str(name) for name in names])
    if labels.has_duplicates:
        twice = labels[labels.duplicated()].unique().tolist()[:5]
        raise ValueError(
            f"`key={key!r}` needs regions of different names, but has {twice} more than once. Rename them."
        )
    if not weights.nnz:
        raise ValueError(f"`key={key!r}` needs a region in the tissue, but no bin of {result.key!r} lies in any.")
    found, _ = totals(result, weights, labels)
    return found if in_column else annotating(found, key, names)


def check_record(result: Result) -> None:
    """Check that a result knows what totals need.

    Raises
    ------
    KeyError
        If its table has lost the record of its run, or the column ``dispersion`` of ``var``.
    """
    _ = result.provenance
    if DISPERSION not in result.table.var:
        raise MissingKeyError(f"tables/{result.table_key}: `var` lacks {DISPERSION!r}. {again(result)}")


def annotating(table: AnnData, key: str, names: np.ndarray) -> AnnData:
    """The table, as one that annotates an element whose instances have these names."""
    table.obs["region"], table.obs["instance_id"] = pd.Categorical([key] * len(names)), names
    return TableModel.parse(table, region=key, region_key="region", instance_key="instance_id")


def totals(
    result: Result,
    weights: sparse.csr_array,
    labels: pd.Index,
    columns: np.ndarray | None = None,
    dtype: type = np.float64,
) -> tuple[AnnData, np.ndarray]:
    """Expected counts of weighted sums over the bins of a result, with their intervals, as :func:`regions` returns.

    A few genes at a time are read, so that memory holds little more than the table.

    Parameters
    ----------
    result
        The result.
    weights
        ``(sums, bins)`` share of each bin that belongs to each sum, bins in the order of ``result.places``.
    labels
        Names of the sums.
    columns
        Columns of the table; ``None`` = all.
    dtype
        Of the values.

    Returns
    -------
    The table, and the expected counts of all bins together, ``(genes,)``.
    """
    if doubted := doubt(result.record):
        logger.warning("the intervals of sums over bins may be too narrow or too wide: %s", doubted)
    _, y, x = result.places
    pitch = float(result.provenance["pitch_um"]) / float(result.provenance["bin_um"])
    columns = np.arange(result.table.n_vars) if columns is None else columns
    var, n_bins = result.table.var.iloc[columns].copy(), weights.sum(1)
    values: np.ndarray = np.empty((4, len(labels), len(columns)), dtype)
    total, std, low, high = values

    def of_genes(start: int) -> np.ndarray:
        genes = slice(start, start + GENES_AT_ONCE)
        mean = np.asarray(result.maps_at_bins(columns[genes]), float)
        spread = Spread(var[DISPERSION].to_numpy(float)[genes], pitch).of_sums(mean, weights, np.c_[y, x])
        expected = weights @ mean
        total[:, genes], std[:, genes] = expected, spread
        low[:, genes] = rate_quantiles(expected, spread, (1 - LEVEL) / 2)
        # The 95 % quantile of a very wide Gamma distribution is below its mean.
        high[:, genes] = np.maximum(rate_quantiles(expected, spread, (1 + LEVEL) / 2), expected)
        return np.asarray(mean.sum(0))

    with computed_here():
        _ = result.image()  # found once, not by each thread
        whole = np.concatenate(side_by_side(of_genes, range(0, len(columns), GENES_AT_ONCE)))
    values[:, n_bins == 0] = np.nan
    layers = {"std": std, "low": low, "high": high}
    return AnnData(total, pd.DataFrame({"n_bins": n_bins}, index=labels), var, layers=layers), whole


def _other(result: Result, key: object) -> str:
    """Return what to pass for regions that were not found: shapes of labels, or a name that is like theirs."""
    if isinstance(key, str) and key in result.sdata.labels:
        shapes = f"{key}_shapes"
        make = f"sdata.shapes[{shapes!r}] = spatialdata.to_polygons(sdata.labels[{key!r}])"
        return f"Make shapes of these labels: `{make}`, then pass `key={shapes!r}`."
    if close := alike(str(key), [*result.table.obs, *result.sdata.shapes]):
        return f"Pass `key={close!r}`."
    return "Add a column to the table of the bins first, or pass `key='measured'`, which every result has."


def _of_column(values: pd.Series, table_key: str) -> tuple[np.ndarray, sparse.csr_array]:
    """Names of the categories, and the bins of each; missing values belong to none."""
    if pd.api.types.is_float_dtype(values) and (values.dropna() % 1 != 0).any():
        table, binned = f"sdata[{table_key!r}]", f"{values.name}_binned"
        raise ValueError(
            f"`key={values.name!r}` needs a column of categories, but holds measurements such as {values.iloc[0]:g}. "
            f"Make categories: `{table}.obs[{binned!r}] = pandas.cut({table}.obs[{values.name!r}], 4)`, then pass "
            f"`key={binned!r}`."
        )
    found = values.astype("category")
    codes = found.cat.codes.to_numpy()
    inside = np.flatnonzero(codes >= 0)
    shape = (len(found.cat.categories), len(codes))
    weights = sparse.coo_array((np.ones(len(inside)), (codes[inside], inside)), shape)
    return found.cat.categories.to_numpy(), weights.tocsr()


def warn_if_partial(result: Result) -> None:
    """Warn if the table has lost bins of the result: sums over shapes then lack them."""
    bins, kept = np.count_nonzero(np.asarray(result.labels.data)), len(result.places[0])
    if kept < bins:
        logger.warning(
            "tables/%s has %s of the %s bins of %r: sums are of these alone",
            *(result.table_key, f"{kept:,}", f"{bins:,}", result.key),
        )


def _of_shapes(result: Result, key: str) -> tuple[np.ndarray, sparse.csr_array]:
    """Names of the shapes, and the share of each bin in each."""
    element = result.sdata.shapes[key]
    shared = [name for name in systems_of(result) if name in systems(element)]
    if not shared:
        raise MissingKeyError(
            f"shapes/{key}: shares no coordinate system with the result. It has {list(systems(element))}, the result "
            f"{list(systems(result.sdata.labels[result.region]))}. "
            f"{set_identity(key, result.system)}"
        )
    to_bins = np.linalg.inv(result.to_system(shared[0])) @ affine(element, shared[0])
    (_, y, x), shape = result.places, result.labels.shape
    weights = overlap(on_bins(outlines(element), to_bins), shape)[:, y * shape[1] + x]
    return element.index.to_numpy(), sparse.csr_array(weights)
