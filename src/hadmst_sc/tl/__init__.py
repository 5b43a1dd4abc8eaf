"""Tools: the main job."""

from hadmst_sc.tl._predict import predict
from hadmst_sc.tl._superresolve import superresolve

__all__ = ["predict", "superresolve"]
