"""The one protocol: every function of this package takes a denoiser or gives one."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Denoiser = Callable[[Tensor, float], Tensor]
"""``(x, sigma) -> denoised``: a state ``(genes, ny, nx)`` in model space and a noise level to ``D(x; sigma)``, same
shape."""
