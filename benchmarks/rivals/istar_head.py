"""The head of iStar (Zhang et al. 2024) on our H&E features: no features of iStar are in it, so it is not iStar.

As in its published code: four hidden layers of 256 with leaky rectifiers, an output above zero, genes between 0 and 1,
squared error of the mean over each spot, and Adam. One network, where iStar takes the median of several: those would
take a quarter of an hour per section here.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import nn

from hadmst_sc.section.features import he_features, standardised
from hadmst_sc.section.observation import Observation
from rivals.section import Section

STATES, EPOCHS, LEARNING_RATE = 1, 400, 1e-4
BATCH = 32  # spots


class _Head(nn.Module):
    def __init__(self, n_in: int, n_genes: int) -> None:
        super().__init__()
        widths = [n_in, 256, 256, 256, 256]
        layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.LeakyReLU(0.1))]
        self.layers = nn.Sequential(*layers, nn.Linear(256, n_genes), nn.ELU(alpha=0.01))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x) + 0.01


def istar_head(obs: Observation) -> np.ndarray:
    """``(genes, ny, nx)`` expected counts per bin."""
    section = Section.of(obs)
    bins = torch.from_numpy(standardised(he_features(obs), obs)[:, obs.inside].T.astype(np.float32))
    low, high = section.rates.min(0), section.rates.max(0)
    scale = np.maximum(high - low, 1e-9)
    target = torch.from_numpy(((section.rates - low) / scale).astype(np.float32))
    matrix = section.matrix.multiply(1 / section.area).tocsr().astype(np.float32)
    spots = [(torch.from_numpy(row.indices.astype(np.int64)), torch.from_numpy(row.data)) for row in matrix]
    predicted = []
    with torch.random.fork_rng([]):
        for state in range(STATES):
            torch.manual_seed(state)
            predicted.append(_trained(bins, spots, target))
    return section.maps(np.median(predicted, 0) * scale + low)


def _trained(bins: torch.Tensor, spots: list[tuple[torch.Tensor, torch.Tensor]], target: torch.Tensor) -> np.ndarray:
    head = _Head(bins.shape[1], target.shape[1])
    optimiser = torch.optim.Adam(head.parameters(), LEARNING_RATE)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(spots)).split(BATCH):
            index, weight = (torch.cat([spots[i][part] for i in batch]) for part in (0, 1))
            owner = torch.repeat_interleave(torch.tensor([len(spots[i][0]) for i in batch]))
            sums = torch.zeros(len(batch), target.shape[1]).index_add(0, owner, head(bins[index]) * weight[:, None])
            optimiser.zero_grad()
            ((sums - target[batch]) ** 2).mean().backward()
            optimiser.step()
    with torch.no_grad():
        return head(bins).numpy()
