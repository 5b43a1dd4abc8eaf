"""The four parts of the method, and their weights.

:mod:`.distillation` is the semantic distillation network, :mod:`.alignment` the spatial alignment module,
:mod:`.adversary` the channel-aware adversarial learner (training only), :mod:`.diffusion` the conditional diffusion
model, which contains the first two and is what a weights file holds.
"""

from hadmst_sc.models.diffusion import HadmstModel, ModelSpec
from hadmst_sc.models.distillation import HEStudent
from hadmst_sc.models.weights import load_model

__all__ = ["HEStudent", "HadmstModel", "ModelSpec", "load_model"]
