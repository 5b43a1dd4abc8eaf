"""Spatial alignment: a local offset of the image per bin, from the agreement of H&E and spots around it.

Registration (:mod:`hadmst_sc.alignment.register`) has moved the image as a whole; local errors of a few bins remain.
The module compares the leading components predicted from the image with those predicted from the spots, and warps all
maps derived from the image by a bounded, smooth offset per bin.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from hadmst_sc.models.local import silence

CELL = 4  # bins: spacing of the lattice on which offsets are estimated; interpolated in between
TRIED = 2  # bins: largest shift that is compared, in each direction


class SpatialAlignment(nn.Module):
    """Offsets within ``bound`` bins from leading components of image and spots; zero at initialisation.

    The input is the product of the two at every trial shift, averaged over components and cells (a cost volume, as in
    optical flow). A single cell has little information, so the layers above have growing receptive fields.

    Parameters
    ----------
    hidden
        Number of hidden channels.
    bound
        Largest offset per axis, bins.
    """

    def __init__(self, hidden: int, bound: float) -> None:
        super().__init__()
        self.bound = bound
        self.layers = nn.Sequential(
            nn.Conv2d((2 * TRIED + 1) ** 2, hidden, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(hidden, hidden, 3, padding=2, dilation=2),
            nn.SiLU(),
            nn.Conv2d(hidden, hidden, 3, padding=4, dilation=4),
            nn.SiLU(),
            nn.Conv2d(hidden, 2, 1),
        )
        silence(self.layers[-1])

    def forward(self, image: Tensor, spots: Tensor) -> Tensor:
        """Offsets ``(b, 2, ny, nx)`` as (y, x) from two ``(b, components, ny, nx)``; sides of any length."""
        ny, nx = image.shape[-2:]
        volume = functional.avg_pool2d(_agreement(image, spots), CELL, ceil_mode=True)
        # Remove the mean over the shifts: it measures the strength of the components here, not their position.
        coarse = self.bound * torch.tanh(self.layers(volume - volume.mean(1, keepdim=True)))
        return functional.interpolate(coarse, scale_factor=CELL, mode="bilinear", align_corners=False)[..., :ny, :nx]


def _agreement(image: Tensor, spots: Tensor) -> Tensor:
    """Mean product of ``image`` moved by each trial shift with ``spots``, ``(b, shifts, ny, nx)``."""
    ny, nx = image.shape[-2:]
    padded = functional.pad(image, (TRIED,) * 4, mode="replicate")
    steps = range(2 * TRIED + 1)
    return torch.stack([(padded[..., dy : dy + ny, dx : dx + nx] * spots).mean(1) for dy in steps for dx in steps], 1)


def aligned(maps: Tensor, offsets: Tensor) -> Tensor:
    """Warp maps so that bin ``p`` reads the image at ``p + offset``, with linear interpolation.

    Parameters
    ----------
    maps
        ``(b, c, ny, nx)`` derived from the image.
    offsets
        ``(b, 2, ny, nx)`` or ``(1, 2, ny, nx)``, bins, (y, x). Beyond the border the maps repeat the edge.
    """
    ny, nx = maps.shape[-2:]
    y = torch.arange(ny, device=maps.device, dtype=maps.dtype)[:, None] + offsets[:, 0]
    x = torch.arange(nx, device=maps.device, dtype=maps.dtype)[None, :] + offsets[:, 1]
    grid = torch.stack([(2 * x + 1) / nx - 1, (2 * y + 1) / ny - 1], -1)
    grid = grid.expand(len(maps), -1, -1, -1)
    return functional.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)
