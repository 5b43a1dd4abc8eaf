"""Samplers, tiling and consistency: they know one protocol, the denoiser ``D(x, sigma)``, and nothing of networks."""

from hadmst_sc.diffusion.consistency import Footprints, consistent
from hadmst_sc.diffusion.denoiser import Denoiser
from hadmst_sc.diffusion.sampling import keyed_noise, sample, shared_noise, sigma_schedule
from hadmst_sc.diffusion.tiling import tiled, tiles, to_multiples

__all__ = [
    "Denoiser",
    "Footprints",
    "consistent",
    "keyed_noise",
    "sample",
    "shared_noise",
    "sigma_schedule",
    "tiled",
    "tiles",
    "to_multiples",
]
