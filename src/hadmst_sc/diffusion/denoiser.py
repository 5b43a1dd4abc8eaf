"""Denoisers: the protocol, the space of a residual, and windows for sections larger than a network takes.

Functions of this package take a denoiser or return one. The denoiser is tiled, not the sample: windows are evaluated
inside every step, on one global state. Blending independently sampled tiles loses variance. Here nothing is blended:
the border of a window is read and discarded, and each bin is written by exactly one window. Windows end at the border
of the grid, where the layers pad as they do for the whole grid, and as they did for the crops that the network was
trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hadmst_sc.section.grid import Window, windows

Denoiser = Callable[[Tensor, float], Tensor]
"""``(x, sigma) -> denoised``: from a state ``(genes, ny, nx)`` in model space and a noise level to ``D(x; sigma)`` of
the same shape."""


def first_closed_form(priors: Tensor) -> Tensor:
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


def tiled(local: Callable[[Window], Denoiser], inside: np.ndarray, *, core: int, halo: int, align: int) -> Denoiser:
    """Denoiser of the whole grid from denoisers of windows.

    Equal to the untiled denoiser if the local ones reach no further than ``halo``.

    Parameters
    ----------
    local
        Returns the denoiser of a window's outer box, which may exceed the far edges by less than ``align``.
    inside
        ``(ny, nx)`` bool. The state is zero outside the tissue, before and after, so windows shrink to their tissue,
        and windows without tissue are skipped.
    core, halo, align
        See :func:`hadmst_sc.section.grid.windows`.
    """
    boxes = tiles(inside, core=core, halo=halo, align=align)
    mask, padding = torch.from_numpy(inside), to_multiples(inside.shape, align)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        keep = mask.to(x.device)
        x = x * keep
        padded = functional.pad(x, padding)
        out = torch.zeros_like(x)
        for window in boxes:
            denoised = local(window)(padded[(slice(None), *window.read)], sigma)
            out[(slice(None), *window.write)] = denoised[(slice(None), *window.keep)]
        return out * keep

    return denoise


def to_multiples(shape: tuple[int, int], align: int) -> tuple[int, int, int, int]:
    """Padding of ``(..., ny, nx)`` at the far edges to multiples of ``align``, for ``torch.nn.functional.pad``."""
    ny, nx = shape
    return 0, -nx % align, 0, -ny % align


def tiles(inside: np.ndarray, *, core: int, halo: int, align: int) -> list[Window]:
    """Windows with tissue, each shrunk to its tissue; see :func:`tiled` for the arguments."""
    covering = windows(inside.shape, core, halo, align)
    return [_fitted(window, inside, halo, align) for window in covering if inside[window.write].any()]


def _up(n: int, align: int) -> int:
    """Round up to a multiple of ``align``."""
    return n + -n % align


def _fitted(window: Window, inside: np.ndarray, halo: int, align: int) -> Window:
    """Shrink a window to its tissue; its edges stay multiples of ``align``, so the phase does not change."""
    (ny, nx), edges = inside.shape, []
    for axis, start in enumerate(window.inner[:2]):
        tissue = np.flatnonzero(inside[window.write].any(1 - axis))
        edges.append((start + tissue[0] // align * align, start + _up(tissue[-1] + 1, align)))
    (y0, y1), (x0, x1) = ((int(low), int(high)) for low, high in edges)
    fitted = Window((y0 - halo, x0 - halo, y1 + halo, x1 + halo), (y0, x0, min(y1, ny), min(x1, nx)))
    return fitted.within((_up(ny, align), _up(nx, align)))
