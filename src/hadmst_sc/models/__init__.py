"""Exactly the parameters that ship in the weights file; tensors only."""

from hadmst_sc.models.encoder import HEStudent
from hadmst_sc.models.hadmst import SIGMA_DRAW, SIGMA_MEAN, HadmstModel, ModelSpec

__all__ = ["SIGMA_DRAW", "SIGMA_MEAN", "HEStudent", "HadmstModel", "ModelSpec"]
