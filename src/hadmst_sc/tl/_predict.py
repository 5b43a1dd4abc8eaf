"""Arrays in, arrays out: the composition of distillation, network, tiling, consistency and draws."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm

from hadmst_sc.allocator import freed_memory_kept
from hadmst_sc.contract import Observation, Prediction
from hadmst_sc.diffusion import RULES, Denoiser, Footprints, consistent, keyed_noise, sample, sigma_schedule, tiled
from hadmst_sc.distill import Distilled, distill
from hadmst_sc.expression import Residual, closed_form
from hadmst_sc.grid import Window
from hadmst_sc.measurement import Measurement
from hadmst_sc.measurement import residual as misfit
from hadmst_sc.models import SIGMA_MEAN, HadmstModel
from hadmst_sc.models.hadmst import gene_channels
from hadmst_sc.registration import Shift, estimate_shift, shift_image
from hadmst_sc.weights import load_model

N_STEPS = 4  # with SIGMA_START: the spread of a Gaussian comes out within 2 % (tests/property/test_sampling.py)
SIGMA_START = 3.0
GENE_CHUNK = 8
WINDOW = 192  # bins; activations of a chunk then stay below half a gigabyte
MARGIN = 16  # bins around the tissue where priors are evaluated, as in training


@dataclass(frozen=True, eq=False)
class _Section:
    """What every gene chunk shares; small enough to send to a worker. Maps are cropped to the tissue."""

    distilled: Distilled
    model: HadmstModel | None
    genes: tuple[str, ...]
    inside: np.ndarray
    crop: tuple[slice, slice]
    measurement: Measurement
    features: Tensor | None
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


def pick_device(device: str = "auto") -> torch.device:
    """``"auto"`` is the first of cuda, mps and cpu that works; anything else is taken literally."""
    if device != "auto":
        try:
            return torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"`device={device!r}` is not to be had here: {error}. Try `device='auto'`.") from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _tissue_box(inside: np.ndarray, align: int) -> tuple[slice, slice]:
    """Bounding box of the tissue, starting on a multiple of the network's alignment so that no phase changes."""
    box = []
    for axis in (1, 0):
        where = np.flatnonzero(inside.any(axis))
        box.append(slice(int(where[0]) // align * align, int(where[-1]) + 1))
    return box[0], box[1]


@torch.inference_mode()
def _encode(model: HadmstModel, context: np.ndarray) -> Tensor:
    """Features of the cropped slide, ``(1, features, ny, nx)`` on the CPU: once, whatever the genes and windows."""
    device = next(model.parameters()).device
    return model.encode(torch.as_tensor(context[None], device=device)).cpu()


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


@torch.inference_mode()
def _predict_chunk(section: _Section, chunk: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Mean and std of some genes on the cropped grid, counts per bin."""
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
    if model is None or section.features is None:
        denoise = lambda x, sigma: torch.zeros_like(x)  # noqa: E731
        denoise = consistent(denoise, residual, footprints, options["consistency"])
    else:
        model = model.to(device)
        halo, core = model.spec.halo, options["window"]
        spots = on_device(distilled.spot_maps(chunk)[crop])
        coverage = on_device(distilled.measurement.coverage[section.crop].clip(0, 1))
        features = section.features.to(device)
        token = on_device(distilled.token[chunk])
        channels = gene_channels(priors, spots, coverage)
        local = _windowed(model, features, channels, token, base[:, None], halo, halo + core)
        denoise = tiled(local, section.inside, core=core, halo=halo, align=model.spec.align)
        denoise = consistent(denoise, residual, footprints, options["consistency"])
    scale = on_device(distilled.gene_mean[chunk])[:, None, None] * inside

    start = torch.zeros_like(residual.base)
    estimate = denoise(start, SIGMA_MEAN)
    mean = (residual.decode(estimate) * scale).cpu().numpy()
    if model is None or options["n_samples"] < 2:
        return mean, None
    moments, sigmas = RunningMoments(), sigma_schedule(options["n_steps"], SIGMA_START)
    names = [section.genes[i] for i in chunk]
    for draw in range(options["n_samples"]):
        noise = keyed_noise(distilled.active.shape, names, options["random_state"], draw)[crop].to(device)
        x = sample(denoise, noise, sigmas, estimate, model.spec.sigma_data)
        moments.update(residual.decode(x) * scale)
    return mean, moments.std.cpu().numpy()


def _footprints(section: _Section, chunk: np.ndarray, device: torch.device) -> Footprints:
    distilled = section.distilled
    depth = distilled.gene_mean[chunk] * section.measurement.area[:, None]
    return Footprints(section.measurement, distilled.rates[:, chunk], depth, distilled.shape[chunk], device)


def _in_order(
    section: _Section, chunks: list[np.ndarray], client: Any
) -> Iterable[tuple[np.ndarray, np.ndarray | None]]:
    """Results chunk by chunk, computed here or on a Dask cluster."""
    if client is None:
        return (_predict_chunk(section, chunk) for chunk in chunks)
    shared = client.scatter(section, broadcast=True)
    futures = [client.submit(_predict_chunk, shared, chunk, pure=False) for chunk in chunks]
    return (future.result() for future in futures)


def _check_options(n_samples: int, n_steps: int, consistency: str, window: int, gene_chunk: int) -> None:
    if consistency not in RULES:
        raise ValueError(f"`consistency` needs one of {RULES}, but is {consistency!r}. Try `consistency='soft'`.")
    for name, value, low in (("n_samples", n_samples, 0), ("n_steps", n_steps, 1), ("batch_size", gene_chunk, 1)):
        if int(value) != value or value < low:
            raise ValueError(f"`{name}` needs a whole number of at least {low}, but is {value!r}.")
    if window < 4 or window % 4:
        raise ValueError(f"`window` needs a positive multiple of 4 bins, but is {window}.")


def predict(
    obs: Observation,
    *,
    model: str | Path | HadmstModel | None = "default",
    n_samples: int = 0,
    n_steps: int | None = None,
    consistency: str = "soft",
    align: bool = True,
    device: str = "auto",
    window: int = WINDOW,
    gene_chunk: int | None = None,
    random_state: int = 0,
    client: Any = None,
    show_progress_bar: bool = False,
) -> Prediction:
    """Super-resolve the genes of an observation.

    The same as :func:`superresolve` for those who have arrays. Results do not depend on ``window``, ``gene_chunk``,
    the order of the genes or ``client``.

    Parameters
    ----------
    obs
        One section.
    model
        A bundled name, a path, a loaded model, or ``None`` for the closed form alone.
    n_samples
        Draws per gene; 2 or more give ``std``. The mean never comes from draws.
    n_steps
        Network evaluations per draw; ``None`` = 4.
    consistency
        ``"soft"`` (knows counting noise), ``"hard"`` (sums equal the counts) or ``"off"``.
    align
        Estimate how far the H&E lies from the spots, and undo it where the evidence is clear.
    device
        ``"auto"`` (cuda, mps, cpu) or a torch device.
    window
        Edge of the windows in bins, a multiple of 4: smaller needs less memory and more time.
    gene_chunk
        Genes per batch; ``None`` = 8.
    random_state
        Seed of the draws.
    client
        A ``dask.distributed.Client``: gene chunks become tasks.
    show_progress_bar
        Show one over genes.

    Returns
    -------
    Expected counts per bin, with per-gene statistics and provenance.
    """
    n_steps, gene_chunk = N_STEPS if n_steps is None else n_steps, GENE_CHUNK if gene_chunk is None else gene_chunk
    _check_options(n_samples, n_steps, consistency, window, gene_chunk)
    torch_device = pick_device(device)
    network = None if model is None else load_model(model, torch_device)
    clock = {"start": time.perf_counter()}
    shift = estimate_shift(obs) if align else None
    if shift is not None:
        obs = shift_image(obs, shift)
    clock["aligned"] = time.perf_counter()
    distilled = distill(obs, margin=MARGIN)
    clock["distilled"] = time.perf_counter()
    crop = _tissue_box(obs.inside, network.spec.align if network else 1)
    options = {
        "n_samples": n_samples if network else 0,
        "n_steps": n_steps,
        "consistency": consistency,
        "window": window,
        "random_state": random_state,
        "device": str(torch_device),
    }
    section = _Section(
        distilled,
        network,
        obs.genes,
        obs.inside[crop],
        crop,
        obs.measurement.cropped(crop),
        None if network is None else _encode(network, distilled.context[(slice(None), *crop)]),
        options,
    )
    n = len(obs.genes)
    chunks = [np.arange(i, min(i + gene_chunk, n)) for i in range(0, n, gene_chunk)]
    mean = np.zeros((n, *obs.grid.shape), np.float32)
    std = np.zeros_like(mean) if network and n_samples > 1 else None
    with freed_memory_kept(), tqdm(total=n, desc="genes", disable=not show_progress_bar) as bar:
        for chunk, (chunk_mean, chunk_std) in zip(chunks, _in_order(section, chunks, client), strict=True):
            here = (slice(chunk[0], chunk[-1] + 1), *crop)
            mean[here] = chunk_mean
            if std is not None:
                std[here] = chunk_std
            bar.update(len(chunk))
    clock["predicted"] = time.perf_counter()
    relative = misfit(mean, obs.counts, obs.measurement)
    return Prediction(
        obs.grid,
        obs.genes,
        mean,
        std,
        obs.inside,
        obs.measurement.coverage > 0,
        _gene_stats(distilled, relative),
        _provenance(options, network, shift, clock, relative),
    )


def _gene_stats(distilled: Distilled, relative: np.ndarray) -> dict[str, np.ndarray]:
    he, space, joint = distilled.r2
    return {
        "loo_r2_he": he,
        "loo_r2_space": space,
        "loo_r2": joint,
        "mean_counts_per_bin": distilled.gene_mean,
        "spot_residual": relative.mean(0),
    }


def _provenance(
    options: dict[str, Any],
    network: HadmstModel | None,
    shift: Shift | None,
    clock: dict[str, float],
    relative: np.ndarray,
) -> dict[str, Any]:
    return options | {
        "model": network.name if network else "closed form",
        "model_sha256": network.sha256 if network else "",
        "registration": asdict(shift) if shift is not None else "off",
        "seconds_align": round(clock["aligned"] - clock["start"], 3),
        "seconds_distill": round(clock["distilled"] - clock["aligned"], 3),
        "seconds_predict": round(clock["predicted"] - clock["distilled"], 3),
        "max_spot_residual": float(relative.max()),
        "mean_spot_residual": float(relative.mean()),
    }
