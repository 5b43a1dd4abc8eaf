"""Spatial alignment: where in the image each bin should look, from the agreement of H&E and spots around it.

Registration (:mod:`hadmst_sc.registration`) has moved the image as a whole; what is left are local errors of a few
bins. The module compares what the image says of the leading metagenes with what the spots say, and bends whatever came
from the image by a bounded, smooth offset per bin.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from hadmst_sc.models.unet import silence

CELL = 4  # bins: offsets are estimated on a lattice of this spacing, and interpolated


class SpatialAlignment(nn.Module):
    """Context to offsets ``(b, 2, ny, nx)`` in bins, (y, x), within ``bound``; zero at initialisation.

    Parameters
    ----------
    in_channels
        Context maps that are compared.
    hidden
        Channels inside.
    bound
        Largest offset per axis, bins.
    """

    def __init__(self, in_channels: int, hidden: int, bound: float) -> None:
        super().__init__()
        self.bound = bound
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, hidden, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(hidden, hidden, CELL, stride=CELL),
            nn.SiLU(),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(hidden, 2, 3, padding=1),
        )
        silence(self.layers[-1])

    def forward(self, context: Tensor) -> Tensor:
        """``(b, in_channels, ny, nx)``, sides of any length, to offsets of the same sides."""
        ny, nx = context.shape[-2:]
        padded = functional.pad(context, (0, -nx % CELL, 0, -ny % CELL), mode="replicate")
        coarse = self.bound * torch.tanh(self.layers(padded))
        return functional.interpolate(coarse, scale_factor=CELL, mode="bilinear", align_corners=False)[..., :ny, :nx]


def aligned(maps: Tensor, offsets: Tensor) -> Tensor:
    """Maps as they look when bin ``p`` reads the image at ``p + offset``, linearly interpolated.

    Parameters
    ----------
    maps
        ``(b, c, ny, nx)`` made from the image.
    offsets
        ``(b, 2, ny, nx)`` or ``(1, 2, ny, nx)``, bins, (y, x). What lies beyond the border repeats the border.
    """
    ny, nx = maps.shape[-2:]
    y = torch.arange(ny, device=maps.device, dtype=maps.dtype)[:, None] + offsets[:, 0]
    x = torch.arange(nx, device=maps.device, dtype=maps.dtype)[None, :] + offsets[:, 1]
    grid = torch.stack([(2 * x + 1) / nx - 1, (2 * y + 1) / ny - 1], -1)
    grid = grid.expand(len(maps), -1, -1, -1)
    return functional.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)
