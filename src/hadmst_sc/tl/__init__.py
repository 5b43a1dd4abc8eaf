"""Tools: super-resolution, and the reliability of its genes and bins."""

from hadmst_sc.tl.bins_to_shapes import bins_to_shapes
from hadmst_sc.tl.log1p import log1p
from hadmst_sc.tl.predict import predict
from hadmst_sc.tl.quantiles import quantiles
from hadmst_sc.tl.regions import regions
from hadmst_sc.tl.reliability import reliability
from hadmst_sc.tl.summary import Summary, summary
from hadmst_sc.tl.superresolve import superresolve
from hadmst_sc.tl.to_cells import to_cells

__all__ = [
    "Summary",
    "bins_to_shapes",
    "log1p",
    "predict",
    "quantiles",
    "regions",
    "reliability",
    "summary",
    "superresolve",
    "to_cells",
]
