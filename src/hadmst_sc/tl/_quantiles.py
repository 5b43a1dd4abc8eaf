"""Quantiles of the rate of every bin, as layers of a result."""

from __future__ import annotations

from collections.abc import Sequence

import dask.array as da
import numpy as np
from spatialdata import SpatialData

from hadmst_sc.contract import PROVENANCE_KEY, OutputNames
from hadmst_sc.io.problems import MissingKeyError, logger
from hadmst_sc.io.resolve import result_table
from hadmst_sc.uncertainty import doubt, rate_quantile


def quantiles(
    sdata: SpatialData, quantiles: Sequence[float] = (0.05, 0.95), *, key_added: str = "superres"
) -> dict[str, str]:
    """Add quantiles of every bin's expected counts to the table of a result, from estimate and standard deviation.

    Between ``layers["q0.05"]`` and ``layers["q0.95"]`` the expected counts of a bin lie with a probability of 90 %, on
    average over bins and genes; the standard deviation is calibrated for that at held-out spots. Where it could not be,
    a warning says why. Counts of single molecules scatter more, by counting noise.

    Parameters
    ----------
    sdata
        Holds the result; its table receives the layers, in memory (write the table to keep them).
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
        If there is no such result, or it has no standard deviation.
    ValueError
        If a quantile does not lie between 0 and 1.

    Examples
    --------
    On the section of the example of :func:`hadmst_sc.tl.superresolve`:

    >>> hd.tl.quantiles(sdata)
    {'0.05': 'q0.05', '0.95': 'q0.95'}
    """
    wrong = [quantile for quantile in quantiles if not 0 < quantile < 1]
    if wrong:
        raise ValueError(f"`quantiles` needs numbers between 0 and 1, but has {wrong}. Try `quantiles=(0.05, 0.95)`.")
    table = result_table(sdata, key_added)
    if "std" not in table.layers:
        name = OutputNames(key_added).table
        raise MissingKeyError(
            f"tables/{name}: has no layer 'std', which needs draws. Call `tl.superresolve(..., n_samples=4, "
            f"overwrite=True)` with a model first."
        )
    if refused := doubt(table.uns[PROVENANCE_KEY]):
        logger.warning("the quantiles of %r may be too close or too far apart: not calibrated, %s", key_added, refused)
    names = {f"{quantile:g}": f"q{quantile:g}" for quantile in quantiles}
    for quantile, layer in zip(quantiles, names.values(), strict=True):
        table.layers[layer] = _quantile(table.X, table.layers["std"], quantile)
    return names


def _quantile(mean: np.ndarray | da.Array, std: np.ndarray | da.Array, quantile: float) -> np.ndarray | da.Array:
    if isinstance(mean, da.Array):
        return da.map_blocks(_quantile, mean, std, quantile, dtype=np.float32)
    columns = zip(np.asarray(mean, float).T, np.asarray(std, float).T, strict=True)  # a gene at a time: less memory
    return np.stack([rate_quantile(*column, quantile).astype(np.float32) for column in columns], 1)
