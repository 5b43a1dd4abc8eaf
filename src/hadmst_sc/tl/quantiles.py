"""Quantiles of the expected counts of every bin, as layers of a result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import dask.array as da
import numpy as np
from spatialdata import SpatialData

from hadmst_sc.io.result import Result, again, find_result
from hadmst_sc.runtime import usual_errors
from hadmst_sc.section.errors import MissingKeyError, logger
from hadmst_sc.trust.intervals import doubt
from hadmst_sc.trust.table import rate_quantiles


@usual_errors
def quantiles(
    sdata: SpatialData, quantiles: Sequence[float] = (0.05, 0.95), *, key_added: str = "superres"
) -> dict[str, str]:
    """Add quantiles of the expected counts of every bin as layers to the table of a result.

    The expected counts of a bin are between ``layers["q0.05"]`` and ``layers["q0.95"]`` with a probability of 90 %, on
    average over bins and genes. This is tested at held-out spots; a warning appears if it does not hold there. Measured
    counts scatter more, by counting noise. The images of the result are read, not ``X`` of the table, which may be
    normalised. For sums over bins, see :func:`regions`.

    Parameters
    ----------
    sdata
        Holds the result; its table receives the layers, in memory. Three lines keep them in a store:
        ``sdata["superres_table"] = sdata["superres_table"].to_memory()``,
        ``sdata.delete_element_from_disk("superres_table")``, ``sdata.write_element("superres_table")``.
    quantiles
        Between 0 and 1.
    key_added
        Name of the result.

    Returns
    -------
    Names of the layers, by quantile.

    Raises
    ------
    KeyError
        If there is no such result, it has no standard deviation, or its images or labels are missing.
    ValueError
        If a quantile is not between 0 and 1.

    Examples
    --------
    On the section of the example of :func:`hadmst_sc.tl.superresolve`:

    >>> hd.tl.quantiles(sdata)
    {'0.05': 'q0.05', '0.95': 'q0.95'}
    """
    if not isinstance(quantiles, Iterable) or isinstance(quantiles, str):
        quantiles = (quantiles,)
    quantiles = list(quantiles)
    wrong = [one for one in quantiles if not isinstance(one, int | float | np.number) or not 0 < one < 1]
    if wrong:
        raise ValueError(f"`quantiles` needs numbers between 0 and 1, but has {wrong}. Try `quantiles=(0.05, 0.95)`.")
    result = result_with_std(sdata, key_added, "quantiles may be too narrow or too wide")
    names = {f"{quantile:g}": f"q{quantile:g}" for quantile in quantiles}
    mean, std = (result.maps_at_bins(std=which) for which in (False, True))
    for quantile in quantiles:
        result.set_layer(names[f"{quantile:g}"], gene_by_gene(partial(rate_quantiles, quantile=quantile), mean, std))
    return names


def result_with_std(sdata: SpatialData, key_added: str, danger: str) -> Result:
    """Return a result that has a standard deviation; warn if held-out spots contradict it.

    Parameters
    ----------
    sdata, key_added
        As in :func:`quantiles`.
    danger
        What can be wrong without a good standard deviation, for the warning.

    Raises
    ------
    KeyError
        If there is no such result, or it has no standard deviation.
    """
    result = find_result(sdata, key_added)
    if result.std_key is None and "std" not in result.table.layers:
        raise MissingKeyError(
            f"tables/{result.table_key}: has no layer 'std', because the run had `with_std=False`. {again(result)}"
        )
    doubted = doubt(result.record) if result.record else "the table has lost its provenance"
    if doubted:
        logger.warning("%r: %s: %s", key_added, danger, doubted)
    return result


def gene_by_gene(
    function: Callable[[np.ndarray, np.ndarray], np.ndarray], mean: np.ndarray | da.Array, std: np.ndarray | da.Array
) -> np.ndarray | da.Array:
    """Return a function of estimate and standard deviation, ``(bins, genes)`` float32; lazy if they are.

    Parameters
    ----------
    function
        Applied to one gene at a time, which needs less memory.
    mean, std
        ``(bins, genes)``.
    """
    if isinstance(mean, da.Array):
        return da.map_blocks(partial(gene_by_gene, function), mean, std, dtype=np.float32)
    columns = zip(np.asarray(mean, float).T, np.asarray(std, float).T, strict=True)
    return np.stack([function(*column).astype(np.float32) for column in columns], 1)
