"""The denoiser protocol: functions of this package take a denoiser or return one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, float], Tensor]
"""``(x, sigma) -> denoised``: from a state ``(genes, ny, nx)`` in model space and a noise level to ``D(x; sigma)`` of
the same shape."""


def closed_form(priors: Tensor) -> Tensor:
    """Estimate of the closed form: geometric mean of the space, joint and spread priors.

    Their errors differ: kriging blurs, regression on the image overshoots; a mean of logs reduces both.

    Parameters
    ----------
    priors
        ``(g, 5, ny, nx)`` in the order of ``distillation.genes.PRIORS``, positive.

    Returns
    -------
    ``(g, ny, nx)``, same unit.
    """
    space, joint, spread = priors[:, 1:4].log().unbind(1)
    return ((space + joint + spread) / 3).exp()  # much faster than a mean over channels


@dataclass(frozen=True)
class Residual:
    """Model space around a closed-form map: ``x = (log1p(rate) - log1p(base)) / scale(base)``.

    Parameters
    ----------
    base
        Closed-form rates, any shape, positive.
    """

    base: Tensor

    @cached_property
    def _log(self) -> Tensor:
        return self.base.log1p()

    @cached_property
    def scale(self) -> Tensor:
        """Typical error of the closed form in log1p; fitted on phantoms, where it grows with the square root."""
        return 0.6 * self._log.sqrt() + 0.05

    def encode(self, rate: Tensor) -> Tensor:
        """Rates (non-negative) to model space."""
        return (rate.log1p() - self._log) / self.scale

    def decode(self, x: Tensor) -> Tensor:
        """Model space to rates. The inverse of :meth:`encode`; negative rates become zero."""
        return torch.expm1((self._log + x * self.scale).clamp(min=0))

    def slope(self, rate: Tensor) -> Tensor:
        """Derivative of the rate with respect to the model-space value, at ``rate``."""
        return (1 + rate) * self.scale
