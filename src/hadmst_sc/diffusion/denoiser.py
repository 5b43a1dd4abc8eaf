"""The one protocol: every function of this package takes a denoiser or gives one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, float], Tensor]
"""``(x, sigma) -> denoised``: a state ``(genes, ny, nx)`` in model space and a noise level to ``D(x; sigma)``, same
shape."""


def closed_form(priors: Tensor) -> Tensor:
    """The closed form's estimate: the geometric mean of the space, joint and spread priors.

    Their errors differ: kriging blurs, regression on the image overshoots; a mean of logs tempers both.

    Parameters
    ----------
    priors
        ``(g, 5, ny, nx)`` in the order of ``distill.PRIORS``, positive.

    Returns
    -------
    ``(g, ny, nx)``, same unit.
    """
    space, joint, spread = priors[:, 1:4].log().unbind(1)
    return ((space + joint + spread) / 3).exp()  # a mean over channels is slower by far


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
        """Size of a typical error of the closed form in log1p: on phantoms it grows with the square root."""
        return 0.6 * self._log.sqrt() + 0.05

    def encode(self, rate: Tensor) -> Tensor:
        """Rates (non-negative) to model space."""
        return (rate.log1p() - self._log) / self.scale

    def decode(self, x: Tensor) -> Tensor:
        """Model space to rates. The inverse of :meth:`encode`; what lies below a rate of zero is zero."""
        return torch.expm1((self._log + x * self.scale).clamp(min=0))

    def slope(self, rate: Tensor) -> Tensor:
        """Derivative of the rate with respect to the model-space value, at some rates."""
        return (1 + rate) * self.scale
