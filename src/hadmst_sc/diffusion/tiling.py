"""Tile the denoiser, not the sample: windows are evaluated inside every step, on one global state.

Independently drawn tiles lose variance where they are blended. Here nothing is blended at all: the border of a window
is read and thrown away, and each bin is written by exactly one window.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hadmst_sc.diffusion.denoiser import Denoiser
from hadmst_sc.grid import Window, windows


def tiled(local: Callable[[Window], Denoiser], inside: np.ndarray, *, core: int, halo: int, align: int) -> Denoiser:
    """A denoiser of the whole grid from denoisers of windows.

    Equal to the untiled denoiser when the local ones reach no further than ``halo``.

    Parameters
    ----------
    local
        Gives the denoiser of a window's outer box (which may stick out of the grid).
    inside
        ``(ny, nx)`` bool. The state is zero outside the tissue, before and after: windows shrink to their tissue, and
        those without any cost nothing.
    core, halo, align
        As for :func:`hadmst_sc.grid.windows`.
    """
    boxes = tiles(inside, core=core, halo=halo, align=align)
    mask = torch.from_numpy(inside)
    far = halo + align  # windows end on a multiple of `align`, which may lie past the far edge

    def denoise(x: Tensor, sigma: float) -> Tensor:
        keep = mask.to(x.device)
        x = x * keep
        padded = functional.pad(x, (halo, far, halo, far))
        out = torch.zeros_like(x)
        for window in boxes:
            y0, x0, y1, x1 = (edge + halo for edge in window.outer)
            denoised = local(window)(padded[:, y0:y1, x0:x1], sigma)
            out[(slice(None), *window.write)] = denoised[(slice(None), *window.keep)]
        return out * keep

    return denoise


def tiles(inside: np.ndarray, *, core: int, halo: int, align: int) -> list[Window]:
    """The windows with tissue in them, each as small as that allows; arguments are those of :func:`tiled`."""
    covering = windows(inside.shape, core, halo, align)
    return [_fitted(window, inside, halo, align) for window in covering if inside[window.write].any()]


def _fitted(window: Window, inside: np.ndarray, halo: int, align: int) -> Window:
    """The window shrunk to the tissue in it, without a change of phase: its edges stay multiples of ``align``."""
    edges = []
    for axis, start in enumerate(window.inner[:2]):
        tissue = np.flatnonzero(inside[window.write].any(1 - axis))
        edges.append((start + tissue[0] // align * align, start + -(-(tissue[-1] + 1) // align) * align))
    (y0, y1), (x0, x1) = ((int(low), int(high)) for low, high in edges)
    inner = (y0, x0, min(y1, inside.shape[0]), min(x1, inside.shape[1]))
    return Window((y0 - halo, x0 - halo, y1 + halo, x1 + halo), inner)
