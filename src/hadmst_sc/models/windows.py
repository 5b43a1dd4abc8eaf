"""A slide through a network in windows: memory is that of a window, whatever the slide."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from hadmst_sc.grid import windows

CORE, HALO, ALIGN = 512, 64, 4  # bins; the halo is beyond the reach of student, alignment and encoder


@torch.inference_mode()
def in_windows(
    network: Callable[[Tensor], tuple[Tensor, ...]], maps: np.ndarray, device: torch.device, *, core: int = CORE
) -> list[Tensor]:
    """What a local network makes of a slide, on the CPU.

    Parameters
    ----------
    network
        Takes ``(1, c, y, x)``, gives maps ``(1, f, y, x)``, and reaches no further than ``HALO`` bins.
    maps
        ``(c, ny, nx)`` float32.
    device
        Where the network is.
    core
        Edge of what a window writes, bins.

    Returns
    -------
    ``(1, f, ny, nx)`` for each of the network's maps.
    """
    ny, nx = maps.shape[1:]
    whole: list[Tensor] = []
    for window in windows((ny, nx), core, HALO, ALIGN):
        # Ends at the border of the slide rather than beyond it: there the layers pad as they do for a whole slide.
        window = window.within((ny, nx))
        part_of_it = torch.as_tensor(np.ascontiguousarray(maps[(None, slice(None), *window.read)]), device=device)
        with torch.autocast(device.type, enabled=False):  # whatever the caller's
            made = network(part_of_it)
        whole = whole or [torch.empty((1, part.shape[1], ny, nx), dtype=part.dtype, device="cpu") for part in made]
        for all_of_it, part in zip(whole, made, strict=True):
            all_of_it[(..., *window.write)] = part[(..., *window.keep)].cpu()
    return whole
