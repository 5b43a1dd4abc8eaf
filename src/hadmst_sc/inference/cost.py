"""Time, memory and disk space of a run, before it starts: its work is counted, a small part timed on this machine."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from hadmst_sc.diffusion import tiles
from hadmst_sc.inference.by_metagenes import N_LANDMARKS
from hadmst_sc.inference.prepare import PER_FEATURE
from hadmst_sc.inference.progress import DISTILLATION, REGISTRATION, seconds_of, shortest
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
# Time per gene outside the network, of a gene that the network does not see, and to write one, in Gaussian filters of
# one map, measured on a mouse brain.
PER_GENE, UNSEEN, WRITING = 6, 3, 3
# Peak bytes, fitted to sections of 60,000 to two million bins: libraries, per bin of a network window, per bin.
LIBRARIES, WINDOW, PER_BIN = 0.5e9, 3000, 4000
KEPT = 1500  # bytes per bin of a distilled section on disk, at most


_measured: dict[tuple[str, str], float] = {}  # seconds of an evaluation, per bin and gene


class Cost(NamedTuple):
    """Cost of one run."""

    stages: dict[str, float]  # seconds of each, by its key in `progress.STAGES`
    memory: float  # peak bytes of the process
    disk: float  # bytes at most, packed maps take about half

    @property
    def seconds(self) -> float:
        """Seconds of all stages."""
        return sum(self.stages.values())

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
    n_genes, n_bins = settings.n_genes or len(obs.genes), obs.grid.n_bins
    again = distillations(len(obs.spots)) if settings.is_gated else 0
    of_map = seconds_of(1, obs)
    stages = {
        "align": REGISTRATION * of_map * bool(settings.align),
        "gate": DISTILLATION * of_map * again,
        "distill": DISTILLATION * of_map,
        "metagenes": 0.0,
        "predict": UNSEEN * of_map * n_genes,
        "write": WRITING * of_map * n_genes,
    }
    network, area = settings.network, 0
    if network is not None:
        halo, align = network.spec.halo, network.spec.align
        inside = obs.inside[tissue_crop(obs.inside, align)]
        outer = (tile.outer for tile in tiles(inside, core=window, halo=halo, align=align))
        area = sum((y1 - y0) * (x1 - x0) for y0, x0, y1, x1 in outer)
        once = area * _seconds_of_an_evaluation(network, device)
        few = 0 if settings.n_metagenes is None else settings.n_metagenes + N_LANDMARKS
        stages["gate"] += again * (few + len(evaluated_genes(obs))) * once
        stages["metagenes"] += few * once
        if not few:
            stages["predict"] = PER_GENE * of_map * n_genes
            stages["predict"] += n_genes * (1 + settings.n_samples * settings.n_steps) * once
    stored = 4 * n_genes * (n_bins + int(obs.inside.sum())) * (1 + settings.with_std + settings.n_samples)
    memory = LIBRARIES + WINDOW * GENES * min(area, (window + 64) ** 2) / 4 + PER_BIN * n_bins
    if settings.features is not None and not callable(settings.features):
        memory += PER_FEATURE * len(settings.features) * n_bins
    memory += obs.counts.nbytes + (0 if backed else stored)
    return Cost(stages, memory, stored + KEPT * n_bins if backed else 0)


def _seconds_of_an_evaluation(network: HadmstModel, device: torch.device) -> float:
    """Seconds of an evaluation of the network, per bin and gene; measured once in a process if it came from a file."""
    if not network.sha256:  # two such networks would look alike
        return _measure(network, device)
    key = network.sha256, str(device)
    if key not in _measured:
        _measured[key] = _measure(network, device)
    return _measured[key]


@torch.inference_mode()
def _measure(network: HadmstModel, device: torch.device) -> float:
    how: Any = {"dtype": torch.float32, "device": device}
    maps = (torch.zeros(GENES, n, SAMPLE, SAMPLE, **how) for n in (network.spec.encoder[1], N_CHANNELS))
    condition = network.condition(*maps)  # computed once per gene: its time is in PER_GENE
    token = torch.zeros(GENES, network.spec.token, **how)

    def evaluate() -> None:
        network.log_change(condition, token)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return shortest(evaluate) / (GENES * SAMPLE**2)
