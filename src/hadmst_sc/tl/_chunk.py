"""The work on one chunk of genes: network, tiling, consistency and draws on arrays that all chunks share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hadmst_sc.contract import Box
from hadmst_sc.diffusion import (
    Denoiser,
    Footprints,
    consistent,
    keyed_noise,
    sample,
    shared_noise,
    sigma_schedule,
    tiled,
)
from hadmst_sc.distill import N_METAGENES, Distilled
from hadmst_sc.expression import Residual, closed_form
from hadmst_sc.grid import Window
from hadmst_sc.measurement import Measurement
from hadmst_sc.models import SIGMA_DRAW, SIGMA_MEAN, HadmstModel
from hadmst_sc.models.hadmst import gene_channels

# Where draws of several steps start, around the estimate. With four the spread of a Gaussian then comes out within 6 %
# (tests/property/test_diffusion.py); from 80, as in Karras et al. 2022, it would need many more.
SIGMA_START = 3.0


class Maps(NamedTuple):
    """What comes of a chunk: ``(genes, ny, nx)``, draws ``(n_samples, genes, ny, nx)``."""

    mean: np.ndarray
    std: np.ndarray | None = None
    draws: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class SharedSection:
    """What every gene chunk shares; small enough to send to a worker. Maps are cropped to the tissue."""

    distilled: Distilled
    model: HadmstModel | None
    genes: tuple[str, ...]
    inside: np.ndarray
    crop: Box
    measurement: Measurement
    encoded: tuple[Tensor, Tensor] | None  # features and offsets
    share: float  # of the network in the estimate
    options: dict[str, Any]


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


@torch.inference_mode()
def encode_context(model: HadmstModel, context: np.ndarray) -> tuple[Tensor, Tensor]:
    """Features and offsets of the cropped slide on the CPU, ``(1, features, ny, nx)`` and ``(1, 2, ny, nx)``.

    Once, whatever the genes and windows.
    """
    device = next(model.parameters()).device
    features, offsets = model.encode(torch.as_tensor(context[None], device=device))
    return features.cpu(), offsets.cpu()


def _windowed(
    model: HadmstModel, features: Tensor, channels: Tensor, token: Tensor, base: Tensor, halo: int, far: int
) -> Callable[[Window], Denoiser]:
    """Denoisers of windows of one gene chunk; all maps are padded once, by what a window may stick out."""
    pad = (halo, far, halo, far)
    features, channels = functional.pad(features, pad), functional.pad(channels, pad)
    base = functional.pad(base, pad, value=1.0)

    def local(window: Window) -> Denoiser:
        y0, x0, y1, x1 = (edge + halo for edge in window.outer)
        cut = (..., slice(y0, y1), slice(x0, x1))
        here = features[cut].expand(len(base), -1, -1, -1)

        def denoise(x: Tensor, sigma: float) -> Tensor:
            level = torch.full((len(x),), float(sigma), device=x.device)
            return model(x[:, None], level, here, channels[cut], token, base[cut])[:, 0]

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


@torch.inference_mode()
def predict_chunk(section: SharedSection, chunk: np.ndarray) -> Maps:
    """Maps of some genes on the cropped grid, counts per bin."""
    options, distilled, model = section.options, section.distilled, section.model
    device = torch.device(options["device"])
    crop = (slice(None), *section.crop)

    def on_device(values: np.ndarray) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(values, np.float32), device=device)

    priors = on_device(distilled.priors(chunk)[(slice(None), *crop)])
    base = closed_form(priors)
    residual = Residual(base)
    footprints = _footprints(section, chunk, device)
    inside = torch.from_numpy(section.inside).to(device)
    denoise: Denoiser
    if model is None or section.encoded is None:
        denoise = lambda x, sigma: torch.zeros_like(x)  # noqa: E731
        denoise = consistent(denoise, residual, footprints, options["consistency"])
    else:
        model = model.to(device)
        halo, core = model.spec.halo, options["window"]
        spots = on_device(distilled.spot_maps(chunk)[crop])
        coverage = on_device(distilled.measurement.coverage[section.crop].clip(0, 1))
        features, offsets = (maps.to(device) for maps in section.encoded)
        token = on_device(distilled.token[chunk])
        channels = gene_channels(priors, spots, coverage, offsets)
        far = halo + model.spec.align
        local = _windowed(model, features, channels, token, base[:, None], halo, far)
        denoise = tiled(local, section.inside, core=core, halo=halo, align=model.spec.align)
        denoise = _gated(denoise, residual, section.share)
        denoise = consistent(denoise, residual, footprints, options["consistency"])
    scale = on_device(distilled.gene_mean[chunk])[:, None, None] * inside

    start = torch.zeros_like(residual.base)
    estimate = denoise(start, SIGMA_MEAN)
    mean = (residual.decode(estimate) * scale).cpu().numpy()
    if model is None or options["n_samples"] < 2:
        return Maps(mean)
    draws = []
    moments, one_step = RunningMoments(), options["n_steps"] == 1
    # One evaluation is the distilled sampler, which starts from noise alone.
    sigmas = sigma_schedule(options["n_steps"], SIGMA_DRAW if one_step else SIGMA_START)
    for draw in range(options["n_samples"]):
        noise = _noise(section, chunk, draw).to(device)
        x = sample(denoise, noise, sigmas, start if one_step else estimate, model.spec.sigma_data)
        drawn = residual.decode(x) * scale
        moments.update(drawn)
        if options["keep_draws"]:
            draws.append(drawn.cpu().numpy())
    return Maps(mean, moments.std.cpu().numpy(), np.stack(draws) if draws else None)


def _noise(section: SharedSection, chunk: np.ndarray, draw: int) -> Tensor:
    """Noise of some genes: their own, and what they share as far as their spots say that they go together."""
    distilled, crop = section.distilled, (slice(None), *section.crop)
    names = [section.genes[i] for i in chunk] + [f"\0component {k}" for k in range(N_METAGENES)]
    noise = keyed_noise(distilled.active.shape, names, section.options["random_state"], draw)[crop]
    return shared_noise(noise[: len(chunk)], noise[len(chunk) :], torch.from_numpy(distilled.coexpression(chunk)))


def _footprints(section: SharedSection, chunk: np.ndarray, device: torch.device) -> Footprints:
    distilled = section.distilled
    depth = distilled.gene_mean[chunk] * section.measurement.area[:, None]
    return Footprints(section.measurement, distilled.rates[:, chunk], depth, distilled.shape[chunk], device)
