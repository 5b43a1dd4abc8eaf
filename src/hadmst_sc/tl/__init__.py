"""Tools: the main job, and how far to believe its genes and bins."""

from hadmst_sc.tl._predict import predict
from hadmst_sc.tl._quantiles import quantiles
from hadmst_sc.tl._reliability import reliability
from hadmst_sc.tl._shapes import bins_to_shapes
from hadmst_sc.tl._summary import Summary, summary
from hadmst_sc.tl._superresolve import superresolve

__all__ = ["Summary", "bins_to_shapes", "predict", "quantiles", "reliability", "summary", "superresolve"]
