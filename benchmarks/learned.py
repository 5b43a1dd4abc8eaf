"""Baselines that a sceptic asks for: nearest neighbours, boosted trees, joint bilateral upsampling, a U-Net.

They learn from one section alone and see the hand-made H&E features. The first two are regressions as in
:mod:`regression`, the other two make maps as in :mod:`baselines`. Their constants are the best of a few that were tried
on the simulated spots of the breast crop, its truth included: what bias that leaves is in their favour.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from regression import Fit, Section
from scipy import sparse
from scipy.spatial.distance import cdist
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn
from torch.nn import functional

from hadmst_sc.section.features import he_features, standardised
from hadmst_sc.section.measurement import pool
from hadmst_sc.section.observation import Observation

SEED = 0

NEIGHBOURS = (3, 6, 12, 25, 50, 100)

N_FOLDS = 5
RANKS = (1, 3, 6, 12)  # principal components that a gene is put together from
TREES = (15, 30, 60, 120)

DISTANCES_UM = (50.0, 80.0, 120.0, 200.0, 400.0, 800.0, 1600.0)
LIKENESSES = (0.15, 0.25, 0.35, 0.6, 1.2, np.inf)  # root mean square over the features; the last ignores the image

CHANNELS = (32, 48, 64)  # of the U-Net, at the whole, half and a quarter of the resolution
STEPS, PATIENCE = 150, 30
LEARNING_RATE, WEIGHT_DECAY, DROPOUT = 3e-3, 1e-2, 0.3
VALIDATION = 0.1  # of the spots


def _features(section: Section) -> tuple[np.ndarray, np.ndarray]:
    """H&E features of the bins ``(bins, f)`` and, averaged over the footprints, of the spots ``(spots, f)``."""
    maps = he_features(section.obs)
    return maps[:, section.obs.inside].T, pool(maps, section.obs.measurement).astype(np.float32)


def _best(candidates: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index and values of the one of ``(candidates, spots, genes)`` with the least error, per gene."""
    chosen = ((candidates - values) ** 2).mean(1).argmin(0)
    return chosen, np.take_along_axis(candidates, chosen[None, None], 0)[0]


# --- nearest neighbours -----------------------------------------------------------------------------------------------


def nearest_neighbours(section: Section) -> Fit:
    """Mean of the spots that look most alike, as many as leave the least error at a held-out spot, per gene.

    Weights are inverse squares of the distance: on the breast crop that error is 2 % lower than with a plain mean.
    """
    bins, spots = _features(section)
    values, n_spots = section.rates, len(section.rates)
    numbers = sorted({min(number, n_spots - 1) for number in NEIGHBOURS})
    search = NearestNeighbors(n_neighbors=numbers[-1], algorithm="brute").fit(spots)
    to_spots = search.kneighbors()  # without an argument no spot is its own neighbour
    chosen, held_out = _best(np.stack([_mean_of(*to_spots, k, n_spots) @ values for k in numbers]), values)
    to_bins = search.kneighbors(bins)
    out = np.empty((len(bins), values.shape[1]))
    for i in np.unique(chosen):
        out[:, chosen == i] = _mean_of(*to_bins, numbers[i], n_spots) @ values[:, chosen == i]
    return Fit(out, held_out)


def _mean_of(distance: np.ndarray, index: np.ndarray, k: int, n_spots: int) -> sparse.csr_matrix:
    weights = 1 / np.maximum(distance[:, :k], 1e-3) ** 2
    weights /= weights.sum(1, keepdims=True)
    ends = np.arange(0, weights.size + 1, k)
    return sparse.csr_matrix((weights.ravel(), index[:, :k].ravel(), ends), (len(index), n_spots))


# --- gradient boosting ------------------------------------------------------------------------------------------------


class _Boosted:
    """One booster per principal component of the standardised genes, from the spots in ``rows`` alone."""

    def __init__(self, values: np.ndarray, spots: np.ndarray, rows: np.ndarray) -> None:
        values = values[rows]
        self.mean, sd = values.mean(0), values.std(0)
        self.sd = np.where(sd > 1e-9, sd, 1.0)
        left, singular, loadings = np.linalg.svd((values - self.mean) / self.sd, full_matrices=False)
        rank = min(RANKS[-1], int((singular > 1e-6).sum()))
        self.loadings = loadings[:rank]
        self.boosters = [self._booster().fit(spots[rows], score) for score in (left * singular).T[:rank]]

    @staticmethod
    def _booster() -> HistGradientBoostingRegressor:
        # Small trees, few features per split and coarse bins: some hundred noisy spots do not carry more.
        return HistGradientBoostingRegressor(
            learning_rate=0.08,
            max_iter=TREES[-1],
            max_leaf_nodes=6,
            min_samples_leaf=10,
            max_bins=64,
            max_features=0.2,
            l2_regularization=3.0,
            early_stopping=False,
            random_state=SEED,
        )

    def scores(self, features: np.ndarray) -> np.ndarray:
        """``(len(TREES), n, rank)`` components after each number of trees."""
        out = np.zeros((len(TREES), len(features), len(self.boosters)))
        for component, booster in enumerate(self.boosters):
            for n_trees, predicted in enumerate(booster.staged_predict(features), 1):
                if n_trees in TREES:
                    out[TREES.index(n_trees), :, component] = predicted
        return out

    def values(self, scores: np.ndarray, rank: int) -> np.ndarray:
        """``(n, genes)`` from the first ``rank`` of ``(n, components)``."""
        return scores[:, :rank] @ self.loadings[:rank] * self.sd + self.mean


def gradient_boosting(section: Section) -> Fit:
    """Boosted trees from the H&E to principal components of the genes, and back to the genes.

    A model per gene would take minutes and see that gene's noise alone. Rank and number of trees are chosen per gene by
    the error out of fold; means, components and trees of a fold have not seen its spots.
    """
    bins, spots = _features(section)
    values, n_spots = section.rates, len(section.rates)
    fold = np.random.default_rng(SEED).permutation(n_spots) % N_FOLDS
    grid = [(trees, rank) for trees in range(len(TREES)) for rank in RANKS]
    candidates = np.empty((len(grid), *values.shape))
    for out_of_fold in (fold == i for i in np.unique(fold)):
        boosted = _Boosted(values, spots, ~out_of_fold)
        scores = boosted.scores(spots[out_of_fold])
        for j, (trees, rank) in enumerate(grid):
            candidates[j, out_of_fold] = boosted.values(scores[trees], rank)
    chosen, held_out = _best(candidates, values)
    boosted = _Boosted(values, spots, np.ones(n_spots, bool))
    scores = boosted.scores(bins)
    out = np.empty((len(bins), values.shape[1]))
    for j in np.unique(chosen):
        trees, rank = grid[j]
        out[:, chosen == j] = boosted.values(scores[trees], rank)[:, chosen == j]
    return Fit(out, held_out)


# --- joint bilateral upsampling ---------------------------------------------------------------------------------------


def joint_bilateral(obs: Observation, block: int = 4096) -> np.ndarray:
    """Mean of the spots that are near and look alike, a Gaussian each (Kopf et al. 2007); ``(genes, ny, nx)``.

    Both widths are chosen per gene by the error at a held-out spot. Likeness is that of the H&E features: with colour
    alone, as in the paper, that error is larger.
    """
    section = Section.of(obs)
    bins, spots = _features(section)
    values, at_um = section.rates.astype(np.float32), section.spots_um
    widths = [(um, likeness) for um in DISTANCES_UM for likeness in LIKENESSES]
    far, unlike = _squares(at_um, at_um), _squares(spots, spots) / spots.shape[1]
    np.fill_diagonal(far, np.inf)
    chosen, _ = _best(np.stack([_weights(far, unlike, *width) @ values for width in widths]), values)
    out = np.empty((len(bins), values.shape[1]), np.float32)
    for start in range(0, len(bins), block):  # bins × spots does not fit in memory at once
        rows = slice(start, start + block)
        far, unlike = _squares(section.bins_um[rows], at_um), _squares(bins[rows], spots) / spots.shape[1]
        for j in np.unique(chosen):
            out[rows, chosen == j] = _weights(far, unlike, *widths[j]) @ values[:, chosen == j]
    return section.maps(out)


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return cdist(a, b, "sqeuclidean").astype(np.float32)


def _weights(far: np.ndarray, unlike: np.ndarray, um: float, likeness: float) -> np.ndarray:
    weights = far * np.float32(-0.5 / um**2) + unlike * np.float32(-0.5 / likeness**2)
    weights -= weights.max(1, keepdims=True)  # where every spot is far or unlike, the best still counts
    np.exp(weights, out=weights)
    weights /= weights.sum(1, keepdims=True)
    return weights


# --- U-Net ------------------------------------------------------------------------------------------------------------


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
