"""The work on one chunk of genes: network, tiling, consistency and draws on arrays that all chunks share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hadmst_sc.diffusion import (
    Denoiser,
    Footprints,
    consistent,
    sample,
    shared_noise,
    sigma_schedule,
    tiled,
    to_multiples,
)
from hadmst_sc.diffusion.denoiser import Residual, closed_form
from hadmst_sc.inference.shared import Maps, Mixture, SharedSection
from hadmst_sc.models import SIGMA_DRAW, SIGMA_MEAN, HadmstModel
from hadmst_sc.models.diffusion import gene_channels
from hadmst_sc.runtime import one_blas_thread, pick_device
from hadmst_sc.section.grid import Window

# Where draws of several steps start, around the estimate. With four the spread of a Gaussian then comes out within 6 %
# (tests/property/test_diffusion.py); from 80, as in Karras et al. 2022, it would need many more.
SIGMA_START = 3.0
# Where the network computes in bfloat16: a GPU's convolutions are several times faster so, many CPUs' slower.
HALF_PRECISION_ON = ("cuda",)
# How far a gene that the network does not see goes to its mixture of metagenes, and as genes like it were changed: best
# at held-out spots of mouse brain and olfactory bulb; phantoms would borrow less.
TO_METAGENES, OF_OTHERS = 0.5, 0.5


# Bins over which the relative variance of draws is averaged: of four draws it is rough, and where it is low by chance
# intervals would be too narrow. `benchmarks/trust.py` shows what is covered.
SPREAD_SMOOTH = 1.5


class RunningMoments:
    """Mean and standard deviation as a stream (Welford 1962): memory does not grow with the draws."""

    def __init__(self) -> None:
        self.n = 0
        self.mean: Tensor | float = 0.0
        self._squares: Tensor | float = 0.0

    def update(self, values: Tensor) -> None:
        """Take in one draw."""
        self.n += 1
        delta = values - self.mean
        self.mean = self.mean + delta / self.n
        self._squares = self._squares + delta * (values - self.mean)

    @property
    def std(self) -> Tensor:
        """Sample standard deviation (n - 1)."""
        if self.n < 2:
            raise ValueError(f"A standard deviation needs at least 2 draws, but there are {self.n}.")
        return (self._squares / (self.n - 1)) ** 0.5


def _windowed(
    model: HadmstModel, features: Tensor, channels: Tensor, token: Tensor, base: Tensor
) -> Callable[[Window], Denoiser]:
    """Denoisers of windows of one gene chunk; all maps are padded once, by what a window may stick out."""
    ny, nx = base.shape[-2:]
    pad = to_multiples((ny, nx), model.spec.align)
    half = base.device.type in HALF_PRECISION_ON
    autocast = partial(torch.autocast, base.device.type, torch.bfloat16, enabled=half)
    with autocast():
        features = functional.pad(features, pad).expand(len(base), -1, -1, -1)
        condition = model.condition(features, functional.pad(channels, pad))
    base = functional.pad(base, pad, value=1.0)

    def local(window: Window) -> Denoiser:
        cut = (..., *window.read)

        def denoise(x: Tensor, sigma: float) -> Tensor:
            level = torch.full((len(x),), float(sigma), dtype=x.dtype, device=x.device)
            with autocast():
                return model.denoise(x[:, None], level, condition[cut], token, base[cut])[:, 0].float()

        return denoise

    return local


def _gated(denoise: Denoiser, residual: Residual, share: float) -> Denoiser:
    """The estimate between the closed form (0) and the network (1), in the logarithm; draws are left as they are."""

    def gated(x: Tensor, sigma: float) -> Tensor:
        denoised = denoise(x, sigma)
        if sigma < SIGMA_MEAN:
            return denoised
        change = (residual.decode(denoised) / residual.base).clamp(min=1e-9)
        return residual.encode(residual.base * change**share)

    return gated


@one_blas_thread()  # the network is to have all cores
@torch.inference_mode()
def predict_chunk(section: SharedSection, chunk: np.ndarray) -> Maps:
    """Maps of some genes on the cropped grid, counts per bin."""
    device = pick_device(section.settings.device)
    with torch.autocast(device.type, enabled=False):  # whatever the caller's
        return _predict_chunk(section, chunk, device)


def _predict_chunk(section: SharedSection, chunk: np.ndarray, device: torch.device) -> Maps:
    settings, distilled = section.settings, section.distilled
    priors = _on_device(distilled.priors(chunk)[(..., *section.crop)], device)
    residual = Residual(closed_form(priors))
    denoise = _denoiser(section, chunk, priors, residual, device)
    denoise = consistent(denoise, residual, _footprints(section, chunk, device), settings.consistency)
    scale = _on_device(distilled.gene_mean[chunk], device)[:, None, None] * torch.from_numpy(section.inside).to(device)

    start = torch.zeros_like(residual.base)
    estimate = denoise(start, SIGMA_MEAN)
    rate = residual.decode(estimate)
    mean = (rate * scale).cpu().numpy()
    if section.mixture is not None:
        return Maps(mean, _mixed_std(section.mixture, chunk, rate, residual, scale))
    if section.model is None or settings.n_samples < 2:
        return Maps(mean)
    draws = []
    moments, one_step = RunningMoments(), settings.n_steps == 1
    # One evaluation is the distilled sampler, which starts from noise alone.
    sigmas = sigma_schedule(settings.n_steps, SIGMA_DRAW if one_step else SIGMA_START)
    for draw in range(settings.n_samples):
        noise = _noise(section, chunk, draw).to(device)
        x = sample(denoise, noise, sigmas, start if one_step else estimate, section.model.spec.sigma_data)
        drawn = residual.decode(x) * scale
        moments.update(drawn)
        if settings.keep_draws:
            draws.append(drawn.cpu().numpy())
    inside = torch.from_numpy(section.inside).to(device)
    std = section.spread * smoothed(moments.std, rate * scale, inside)
    return Maps(mean, std.cpu().numpy(), np.stack(draws) if draws else None)


def smoothed(std: Tensor, mean: Tensor, inside: Tensor) -> Tensor:
    """Standard deviations ``(genes, ny, nx)`` whose square, relative to the mean's, is averaged over bins inside."""
    reach = round(3 * SPREAD_SMOOTH)
    at = torch.arange(-reach, reach + 1, device=std.device, dtype=std.dtype)
    kernel = torch.exp(-0.5 * (at / SPREAD_SMOOTH) ** 2)

    def blur(maps: Tensor) -> Tensor:
        across = functional.conv2d(maps[:, None], kernel.reshape(1, 1, 1, -1), padding=(0, reach))
        return functional.conv2d(across, kernel.reshape(1, 1, -1, 1), padding=(reach, 0))[:, 0]

    relative = torch.where(inside & (mean > 0), std / mean.clamp(min=1e-12), 0.0) ** 2
    return mean * (blur(relative) / blur(inside[None].to(std.dtype)).clamp(min=1e-12)).sqrt()


def _on_device(values: np.ndarray, device: torch.device) -> Tensor:
    found = torch.from_numpy(np.ascontiguousarray(values, np.float32))
    # Pinned, so that it travels while the GPU computes.
    return found.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else found.to(device)


def _denoiser(
    section: SharedSection, chunk: np.ndarray, priors: Tensor, residual: Residual, device: torch.device
) -> Denoiser:
    """Of some genes before consistency: closed form, metagenes or network."""
    distilled, model = section.distilled, section.model
    if section.mixture is not None:
        mixed = residual.encode(_mixed(section.mixture, chunk, distilled.gene_mean[chunk], residual.base))
        return _gated(lambda x, sigma: mixed, residual, section.share)
    if model is None or section.encoded is None:
        return lambda x, sigma: torch.zeros_like(x)
    model = model.to(device)
    spots = _on_device(distilled.spot_maps(chunk)[(slice(None), *section.crop)], device)
    coverage = _on_device(distilled.measurement.coverage[section.crop].clip(0, 1), device)
    features, offsets = (maps.to(device) for maps in section.encoded)
    channels = gene_channels(priors, spots, coverage, offsets)
    token = _on_device(distilled.token[chunk], device)
    local = _windowed(model, features, channels, token, residual.base[:, None])
    network = tiled(local, section.inside, core=section.limits.window, halo=model.spec.halo, align=model.spec.align)
    return _gated(network, residual, section.share)


def _mixed(mixture: Mixture, chunk: np.ndarray, gene_mean: np.ndarray, base: Tensor) -> Tensor:
    """Rates of some genes: from the closed form towards their metagenes, and as the network changed genes like them."""
    shares, likeness = _on_device(mixture.shares[chunk] / gene_mean[:, None], base.device), mixture.likeness[chunk]
    of_metagenes = torch.einsum("gk,kyx->gyx", shares, _on_device(mixture.maps, base.device)).clamp(min=1e-9)
    change = torch.einsum("gl,lyx->gyx", _on_device(likeness, base.device), _on_device(mixture.change, base.device))
    return base * (TO_METAGENES * (of_metagenes / base).log() + OF_OTHERS * change).exp()


def slope(rate: Tensor, residual: Residual) -> Tensor:
    """How much a rate moves when its place in model space does."""
    return (1 + rate) * residual.scale


def _mixed_std(
    mixture: Mixture, chunk: np.ndarray, rate: Tensor, residual: Residual, scale: Tensor
) -> np.ndarray | None:
    """Standard deviation of some genes from that of others in model space, where all errors are of one size."""
    if mixture.spread is None:
        return None
    likeness, spread = (_on_device(values, rate.device) for values in (mixture.likeness[chunk], mixture.spread))
    return (torch.einsum("gl,lyx->gyx", likeness, spread) * slope(rate, residual) * scale).cpu().numpy()


def _noise(section: SharedSection, chunk: np.ndarray, draw: int) -> Tensor:
    """Noise of some genes: their own, and what they share as far as their spots say that they go together."""
    own = section.noise([section.genes[gene] for gene in chunk], draw)
    return shared_noise(own, section.shared_noise(draw), torch.from_numpy(section.distilled.coexpression(chunk)))


def _footprints(section: SharedSection, chunk: np.ndarray, device: torch.device) -> Footprints:
    distilled = section.distilled
    depth = distilled.gene_mean[chunk] * section.measurement.area[:, None]
    return Footprints(section.measurement, distilled.panel.rates(chunk), depth, distilled.shape[chunk], device)
