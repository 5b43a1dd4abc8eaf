"""A small U-Net, trained on one section by the Poisson likelihood of its spots.

Constants are the best of a few that were tried on the simulated spots of the breast crop, its truth included: what bias
that leaves is in favour of this rival.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from hadmst_sc.section.features import he_features, standardised
from hadmst_sc.section.observation import Observation
from rivals.section import Section

SEED = 0
CHANNELS = (32, 48, 64)  # at the whole, half and a quarter of the resolution
STEPS, PATIENCE = 150, 30
LEARNING_RATE, WEIGHT_DECAY, DROPOUT = 3e-3, 1e-2, 0.3
VALIDATION = 0.1  # of the spots


class _Block(nn.Sequential):
    def __init__(self, n_in: int, n_out: int) -> None:
        layers: list[nn.Module] = []
        for n in (n_in, n_out):
            # Zeros at the border would tell the network where it is, and it is to see the image alone.
            layers += [nn.Conv2d(n, n_out, 3, padding=1, padding_mode="replicate"), nn.GroupNorm(8, n_out), nn.SiLU()]
        super().__init__(*layers)


class _UNet(nn.Module):
    """``(1, f, y, x)`` to rates, one at the start; sides are multiples of four."""

    def __init__(self, n_in: int, n_genes: int) -> None:
        super().__init__()
        fine, middle, coarse = CHANNELS
        self.down = nn.ModuleList([_Block(n_in, fine), _Block(fine, middle), _Block(middle, coarse)])
        self.up = nn.ModuleList([_Block(middle + coarse, middle), _Block(fine + middle, fine)])
        self.dropout, self.head = nn.Dropout(DROPOUT), nn.Linear(fine, n_genes)
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, float(np.log(np.e - 1)))  # where softplus is one

    def forward(self, image: Tensor, at: Tensor) -> Tensor:
        """``(len(at), genes)`` rates in the bins ``at``; the others need no head."""
        fine = self.down[0](image)
        middle = self.down[1](functional.avg_pool2d(fine, 2))
        coarse = self.down[2](functional.avg_pool2d(middle, 2))
        middle = self.up[0](torch.cat([middle, functional.interpolate(coarse, scale_factor=2)], 1))
        fine = self.up[1](torch.cat([fine, functional.interpolate(middle, scale_factor=2)], 1))
        return functional.softplus(self.head(self.dropout(fine[0].flatten(1).T[at])))


def unet_regression(obs: Observation) -> np.ndarray:
    """Small U-Net from the image to all genes, by the Poisson likelihood of the spots' sums; ``(genes, ny, nx)``.

    Stopped where the likelihood of the spots set aside is best; those are never trained on.
    """
    section = Section.of(obs)
    image, inside = _image(obs)
    covered = np.flatnonzero(section.matrix.sum(0))
    matrix = section.matrix[:, covered].astype(np.float32).tocoo()
    operator = torch.sparse_coo_tensor(np.stack(matrix.coords), matrix.data, matrix.shape, check_invariants=True)
    operator = operator.coalesce()
    counts, mean = torch.from_numpy(obs.counts), torch.from_numpy(section.mean.astype(np.float32))
    n_spots = len(counts)
    aside = np.random.default_rng(SEED).permutation(n_spots)[: max(1, round(VALIDATION * n_spots))]
    train = torch.ones(n_spots, dtype=torch.bool)
    train[aside] = False
    with torch.random.fork_rng([]):
        torch.manual_seed(SEED)
        net = _UNet(image.shape[1], len(mean))
        optimiser = torch.optim.AdamW(net.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        best, weights, since = np.inf, net.state_dict(), 0
        for _ in range(STEPS):
            expected = torch.sparse.mm(operator, net(image, inside[covered])) * mean
            loss = expected - counts * torch.log(expected + 1e-8)
            error = float(loss[~train].detach().mean())  # in the same pass, so under dropout as well
            best, since = (error, 0) if error < best else (best, since + 1)
            if since == 0:
                weights = copy.deepcopy(net.state_dict())
            elif since > PATIENCE:
                break
            optimiser.zero_grad()
            loss[train].mean().backward()
            optimiser.step()
        net.load_state_dict(weights)
        with torch.no_grad():
            return section.maps(net.eval()(image, inside).numpy())


def _image(obs: Observation) -> tuple[Tensor, Tensor]:
    """Colour and H&E features about the tissue, ``(1, f, y, x)``, and which of its bins are inside, as an index."""
    box = tuple(slice(at[0], at[-1] + 1) for at in (np.flatnonzero(obs.inside.any(axis)) for axis in (1, 0)))
    k, (ny, nx) = obs.he_per_bin, obs.grid.shape
    colour = obs.he.reshape(3, ny, k, nx, k).mean((2, 4), dtype=np.float32)
    maps = np.concatenate([standardised(colour, obs), he_features(obs)])[:, *box]
    rest = [(0, -side % 4) for side in maps.shape[1:]]
    image, inside = np.pad(maps, [(0, 0), *rest], "edge"), np.pad(obs.inside[box], rest)
    return torch.from_numpy(image)[None], torch.from_numpy(np.flatnonzero(inside))
