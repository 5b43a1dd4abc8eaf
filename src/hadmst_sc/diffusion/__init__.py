"""Sampling, tiling and consistency for any denoiser ``D(x, sigma)``; independent of networks.

The conditional diffusion model is :mod:`hadmst_sc.models.diffusion`.
"""

from hadmst_sc.diffusion.consistency import Footprints, consistent
from hadmst_sc.diffusion.denoiser import Denoiser, tiled, tiles, to_multiples
from hadmst_sc.diffusion.sampling import keyed_noise, sample, sigma_schedule

__all__ = [
    "Denoiser",
    "Footprints",
    "consistent",
    "keyed_noise",
    "sample",
    "sigma_schedule",
    "tiled",
    "tiles",
    "to_multiples",
]
