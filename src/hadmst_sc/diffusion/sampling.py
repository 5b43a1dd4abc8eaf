"""Sampling from a denoiser: schedule, solver, and noise that depends on the position rather than on the call."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from hadmst_sc.diffusion.denoiser import Denoiser
from hadmst_sc.runtime import side_by_side


def sigma_schedule(n_steps: int, sigma_max: float, sigma_min: float = 0.05, rho: float = 7.0) -> Tensor:
    """Noise levels of Karras et al. 2022, Eq. 5: decreasing, ``(n_steps + 1,)``, the last is zero.

    Raises
    ------
    ValueError
        If ``n_steps`` is not positive, or the levels do not decrease.
    """
    if n_steps < 1:
        raise ValueError(f"`n_steps` needs to be at least 1, but is {n_steps}.")
    if not sigma_max > sigma_min > 0:
        raise ValueError(f"`sigma_max` > `sigma_min` > 0 is needed, but they are {sigma_max} and {sigma_min}.")
    ramp = torch.linspace(0, 1, n_steps, dtype=torch.float64, device="cpu")
    levels = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return torch.cat([levels, levels.new_zeros(1)])


def keyed_noise(shape: tuple[int, int], names: Sequence[str], seed: int, draw: int) -> Tensor:
    """Standard normal noise ``(names, ny, nx)`` that is a function of (seed, draw, name, bin) alone.

    Drawn per name (such as a gene) on the whole grid, on the CPU, from a counter-based generator, so it does not depend
    on windows, chunks, gene order, workers or devices. The caller's random state is unchanged.
    """
    maps = np.empty((len(names), *shape), np.float32)

    def fill(name: str, out: np.ndarray) -> None:
        digest = hashlib.sha256(f"{seed}\0{draw}\0{name}".encode()).digest()
        generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
        generator.standard_normal(dtype=np.float32, out=out)

    side_by_side(fill, names, maps)
    return torch.from_numpy(maps)


def sample(denoise: Denoiser, noise: Tensor, sigmas: Tensor, start: Tensor, start_sd: float) -> Tensor:
    """Draw one sample by DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2, data prediction): one evaluation per step.

    At the first level the state is normal around ``start`` with the variance of noise plus data. Starting there rather
    than from pure noise allows a low first level, which keeps the spread correct with few steps.

    Parameters
    ----------
    denoise
        The denoiser.
    noise
        ``(g, ny, nx)`` standard normal.
    sigmas
        Decreasing levels that end in zero.
    start
        ``(g, ny, nx)`` mean of the data, in model space.
    start_sd
        Standard deviation of the data around ``start``.
    """
    levels = [float(s) for s in sigmas]
    x = start + noise * (levels[0] ** 2 + start_sd**2) ** 0.5
    previous, previous_step = None, 0.0
    for now, after in pairwise(levels):
        denoised = denoise(x, now)
        if after == 0:
            return denoised
        step = float(np.log(now / after))
        direction = denoised
        if previous is not None:
            ratio = step / (2 * previous_step)
            direction = (1 + ratio) * denoised - ratio * previous
        x = (after / now) * x - float(np.expm1(-step)) * direction
        previous, previous_step = denoised, step
    return x
