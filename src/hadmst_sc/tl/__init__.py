"""Tools: the main job, and which of its genes to believe."""

from hadmst_sc.tl._predict import predict
from hadmst_sc.tl._reliability import reliability
from hadmst_sc.tl._superresolve import superresolve

__all__ = ["predict", "reliability", "superresolve"]
