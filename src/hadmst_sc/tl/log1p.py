"""Expected log1p of the counts of every bin, as a layer of a result."""

from __future__ import annotations

import numpy as np
from spatialdata import SpatialData

from hadmst_sc.runtime import usual_errors
from hadmst_sc.section.arguments import Requirement, optional, positive
from hadmst_sc.section.errors import Problems
from hadmst_sc.tl.quantiles import gene_by_gene, result_with_std
from hadmst_sc.trust.table import mean_log1p

LAYER = "log1p"
TARGET: Requirement = optional(positive())


@usual_errors
def log1p(sdata: SpatialData, *, target_sum: float | None = None, key_added: str = "superres") -> str:
    """Add the expectation of log1p of the expected counts of every bin as a layer to the table of a result.

    Use it to cluster or to compare bins in log space. The logarithm of the estimate, as ``scanpy.pp.log1p`` computes
    it, is too high where the estimate is uncertain: a logarithm is concave (Jensen's inequality). The
    distribution is that of :func:`quantiles`: Gamma, with the mean and the standard deviation of the bin. The images of
    the result are read, not ``X`` of the table, which may be normalised.

    Parameters
    ----------
    sdata
        Holds the result; its table receives ``layers["log1p"]``, in memory. Three lines keep it in a store:
        ``sdata["superres_table"] = sdata["superres_table"].to_memory()``,
        ``sdata.delete_element_from_disk("superres_table")``, ``sdata.write_element("superres_table")``.
    target_sum
        Scale the expected counts of every bin to this total over the genes of the table first, as
        ``scanpy.pp.normalize_total`` does; ``None`` = as they are.
    key_added
        Name of the result.

    Returns
    -------
    The name of the layer, ``(bins, genes)`` float32.

    Raises
    ------
    KeyError
        If there is no such result, it has no standard deviation, or its images or labels are missing.
    ValueError
        If ``target_sum`` is not a positive number.

    Examples
    --------
    On the section of the example of :func:`hadmst_sc.tl.superresolve`:

    >>> hd.tl.log1p(sdata)
    'log1p'
    >>> table = sdata.tables["superres_table"]
    >>> bool((table.layers["log1p"] <= np.log1p(table.X)).all())
    True
    """
    problems = Problems("cannot compute logarithms")
    problems.check({"target_sum": target_sum}, {"target_sum": (TARGET, 10.0)})
    problems.raise_if_any()
    result = result_with_std(sdata, key_added, "expected logarithms may be too low or too high")
    mean, std = (result.maps_at_bins(std=which) for which in (False, True))
    if target_sum is not None:
        scale = target_sum / np.maximum(mean.sum(1, keepdims=True), 1e-12)
        mean, std = mean * scale, std * scale
    result.set_layer(LAYER, gene_by_gene(mean_log1p, mean, std))
    return LAYER
