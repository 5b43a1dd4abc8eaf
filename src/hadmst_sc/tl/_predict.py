"""Arrays in, arrays out: registration and distillation once, then the genes in chunks."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from hadmst_sc.allocator import freed_memory_kept
from hadmst_sc.contract import Observation, Prediction
from hadmst_sc.diffusion import RULES
from hadmst_sc.distill import Distilled, distill
from hadmst_sc.measurement import residual as misfit
from hadmst_sc.models import HadmstModel
from hadmst_sc.registration import Alignment, align_image, estimate_alignment
from hadmst_sc.tl._chunk import SharedSection, encode_context, predict_chunk
from hadmst_sc.weights import load_model

N_STEPS = 4
GENE_CHUNK = 4
WINDOW = 384  # bins; a Visium slide of 20 µm bins in one piece. Activations of a chunk stay below a gigabyte


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


def _in_order(
    section: SharedSection, chunks: list[np.ndarray], client: Any
) -> Iterable[tuple[np.ndarray, np.ndarray | None]]:
    """Results chunk by chunk, computed here or on a Dask cluster."""
    if client is None:
        return (predict_chunk(section, chunk) for chunk in chunks)
    shared = client.scatter(section, broadcast=True)
    futures = [client.submit(predict_chunk, shared, chunk, pure=False) for chunk in chunks]
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
        Genes per batch; ``None`` = 4.
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
    shift = estimate_alignment(obs) if align else None
    if shift is not None:
        obs = align_image(obs, shift)
    clock["aligned"] = time.perf_counter()
    distilled = distill(obs)
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
    section = SharedSection(
        distilled,
        network,
        obs.genes,
        obs.inside[crop],
        crop,
        obs.measurement.cropped(crop),
        None if network is None else encode_context(network, distilled.context[(slice(None), *crop)]),
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
    shift: Alignment | None,
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
