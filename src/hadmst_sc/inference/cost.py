"""Time, memory and disk space of a run, before it starts: its work is counted, a small part timed on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import ndimage

from hadmst_sc.diffusion import tiles
from hadmst_sc.inference.by_metagenes import N_LANDMARKS
from hadmst_sc.inference.settings import Settings
from hadmst_sc.inference.shared import tissue_crop
from hadmst_sc.models import HadmstModel
from hadmst_sc.models.diffusion import N_CHANNELS
from hadmst_sc.runtime import pick_device
from hadmst_sc.section.observation import Observation
from hadmst_sc.trust.gate import distillations, evaluated_genes

UNITS = {"h": 3600, "min": 60}
SAMPLE = 128  # edge of the map whose evaluation is timed, bins
GENES = 4
# Time outside the network, in Gaussian filters of one map of the grid, measured on a mouse brain: per distillation, per
# registration, per gene.
DISTILLATION, REGISTRATION, PER_GENE = 2000, 2500, 17
# Peak bytes, fitted to sections of 60,000 to two million bins: libraries, per bin of a network window, per bin.
LIBRARIES, WINDOW, PER_BIN = 0.5e9, 3000, 4000


class Cost(NamedTuple):
    """Cost of one run."""

    seconds: float
    memory: float  # peak bytes of the process
    disk: float  # bytes at most, packed maps take about half

    def __str__(self) -> str:
        unit, size = next(((unit, size) for unit, size in UNITS.items() if self.seconds >= 2 * size), ("s", 1))
        stored = f", at most {self.disk / 1e9:.1f} GB of disk" if self.disk else ""
        return f"about {self.seconds / size:.0f} {unit}, {self.memory / 1e9:.1f} GB of memory{stored}"


def cost_of(
    obs: Observation,
    settings: Settings,
    *,
    backed: bool,
) -> Cost:
    """Cost of a run, before anything is computed; the model of ``settings`` must be loaded."""
    window, device = settings.window, pick_device(settings.device)
    n_genes, n_bins = len(obs.genes), obs.grid.n_bins
    again = distillations(len(obs.spots)) if settings.is_gated else 0
    filters = DISTILLATION * (1 + again) + REGISTRATION * bool(settings.align) + PER_GENE * n_genes
    seconds, area = filters * n_bins * _seconds_of_a_filter(), 0
    network = settings.network
    if network is not None:
        halo, align = network.spec.halo, network.spec.align
        inside = obs.inside[tissue_crop(obs.inside, align)]
        outer = (tile.outer for tile in tiles(inside, core=window, halo=halo, align=align))
        area = sum((y1 - y0) * (x1 - x0) for y0, x0, y1, x1 in outer)
        per_gene, few = 1 + settings.n_samples * settings.n_steps, 0
        evaluations: float = n_genes * per_gene
        if settings.n_metagenes is not None:
            few = settings.n_metagenes + N_LANDMARKS
            evaluations = few
        evaluations += again * (few + len(evaluated_genes(obs)))
        seconds += evaluations * area * _seconds_of_an_evaluation(network, device)
    stored = 4 * n_genes * (n_bins + int(obs.inside.sum())) * (1 + settings.with_std + settings.n_samples)
    memory = LIBRARIES + WINDOW * GENES * min(area, (window + 64) ** 2) / 4 + PER_BIN * n_bins
    memory += obs.counts.nbytes + (0 if backed else stored)
    return Cost(seconds, memory, stored if backed else 0)


def _seconds_of_a_filter() -> float:
    """Seconds of a Gaussian filter, per bin."""
    sample = np.zeros((512, 512), np.float32)
    return shortest(lambda: ndimage.gaussian_filter(sample, 2.0)) / sample.size


@torch.inference_mode()
def _seconds_of_an_evaluation(network: HadmstModel, device: torch.device) -> float:
    """Seconds of an evaluation of the network, per bin and gene."""
    how: Any = {"dtype": torch.float32, "device": device}
    maps = (torch.zeros(GENES, n, SAMPLE, SAMPLE, **how) for n in (network.spec.encoder[1], N_CHANNELS))
    condition = network.condition(*maps)  # computed once per gene: its time is in PER_GENE
    token = torch.zeros(GENES, network.spec.token, **how)

    def evaluate() -> None:
        network.log_change(condition, token)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return shortest(evaluate) / (GENES * SAMPLE**2)


def shortest(call: Callable[[], object], repeats: int = 3) -> float:
    """Seconds of the fastest of several calls."""
    call()  # warm-up
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)
