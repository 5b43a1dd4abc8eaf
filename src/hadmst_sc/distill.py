"""Closed-form distillation on the user's own section: H&E and spots in, per-gene priors and honest scores out.

Counts are variance-stabilised (square root) and rotated to principal components over genes (*metagenes*), so noise
that genes do not share averages out and the cost does not grow with the panel. Each component is regressed on the H&E,
on space and on both (:mod:`hadmst_sc.additive`); genes are decoded from the components. There is no iteration and no
random start.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage, sparse
from scipy.spatial import cKDTree

from hadmst_sc.additive import AdditiveRegression, HEDesign
from hadmst_sc.contract import Observation
from hadmst_sc.features import N_BASE, he_features, standardised
from hadmst_sc.kriging import Lattice, pitch_of
from hadmst_sc.measurement import Measurement

PRIORS = ("he", "space", "joint", "spread", "texture")
TOKEN = ("r2_he", "r2_space", "r2_joint", "log_depth", "log_shape", "log_bin_um", "log_pitch")
MAX_COMPONENTS = 64
FLOOR = 0.02  # of a gene's mean: no prior claims that a gene is impossible in a bin
MARGIN = 16  # bins around the tissue where priors are evaluated too, so that windows at the edge see no cliff
N_METAGENES = 8


@dataclass(frozen=True)
class ContextLayout:
    """Channels of the context: leading metagenes as the image, space and both tell them, then the stain maps."""

    sources: tuple[str, ...] = ("texture", "space", "joint")

    @property
    def n_metagenes(self) -> int:
        """Channels before the stain maps."""
        return len(self.sources) * N_METAGENES

    @property
    def n_channels(self) -> int:
        """All channels."""
        return self.n_metagenes + N_BASE

    def of(self, source: str) -> slice:
        """Channels of the metagenes as a source tells them."""
        first = self.sources.index(source) * N_METAGENES
        return slice(first, first + N_METAGENES)

    @property
    def from_image(self) -> list[int]:
        """Channels that the image alone makes."""
        return [*range(N_METAGENES), *range(self.n_metagenes, self.n_channels)]


CONTEXT = ContextLayout()
SPREAD_PITCHES = 0.5  # reach of the spots' log-ratios into the gaps
SPREAD_NEIGHBORS = 12


def gamma_shape(counts: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Shape ``k`` of the Gamma–Poisson law of counts around leave-one-out predictions, per gene, by moments.

    Large when predictions are as good as counting noise allows (the counts then add nothing), small when they are poor.
    """
    excess = ((counts - expected) ** 2 - expected).sum(0)
    return np.where(excess > 0, (expected**2).sum(0) / np.maximum(excess, 1e-9), 1e4).clip(0.05, 1e4)


def _r2(loo: np.ndarray, values: np.ndarray) -> np.ndarray:
    variance = values.var(0)
    return np.where(variance > 1e-12, 1 - ((values - loo) ** 2).mean(0) / np.maximum(variance, 1e-12), 0.0)


@dataclass(frozen=True, eq=False)
class Distilled:
    """Priors of all genes of a section, kept as components and decoded gene by gene.

    Parameters
    ----------
    active
        ``(ny, nx)`` bool: bins where priors are evaluated; elsewhere they are one (the gene's mean).
    context
        ``(CONTEXT.n_channels, ny, nx)`` float32: see :class:`ContextLayout`.
    token
        ``(genes, len(TOKEN))`` float32: what conditions the network on a gene.
    gene_mean
        ``(genes,)`` mean rate, counts per whole bin.
    shape
        ``(genes,)`` Gamma shape ``k`` of the soft consistency.
    r2
        ``(3, genes)`` leave-one-out R² of the priors H&E, space and joint on square-root rates.
    """

    active: np.ndarray
    context: np.ndarray
    token: np.ndarray
    gene_mean: np.ndarray
    shape: np.ndarray
    r2: np.ndarray
    measurement: Measurement
    rates: np.ndarray  # (spots, genes) measured, in gene means
    _maps: np.ndarray  # (4, K, active) components of the H&E, space and joint priors and of the texture
    _loadings: np.ndarray  # (K, genes)
    _offset: np.ndarray  # (genes,) mean square-root rate
    _spread: sparse.csr_matrix  # (active, spots)

    def coexpression(self, genes: np.ndarray) -> np.ndarray:
        """Loadings of genes on the leading components, ``(len(genes), N_METAGENES)``, rows of length at most one.

        The product of two rows is what the leading components explain of the correlation of two genes' square-root
        counts; counting noise is in the denominator. What the estimate misses of two genes correlates in the same way
        (slope 1.0, correlation 0.5 to 0.7 over pairs of genes of three phantoms), so draws share noise by it.
        """
        loadings = self._loadings[:, np.asarray(genes)]
        length = np.sqrt((loadings**2).sum(0))
        out = np.zeros((loadings.shape[1], N_METAGENES), np.float32)
        leading = loadings[:N_METAGENES] / np.maximum(length, 1e-9)
        out[:, : len(leading)] = leading.T
        return out

    def priors(self, genes: np.ndarray) -> np.ndarray:
        """Prior maps of some genes, ``(len(genes), len(PRIORS), ny, nx)`` float32, in units of the gene's mean."""
        genes = np.asarray(genes)
        out = np.ones((len(genes), len(PRIORS), self.active.size), np.float32)
        where = np.flatnonzero(self.active)
        loadings = self._loadings[:, genes].T.astype(np.float32)
        offset = self._offset[genes, None].astype(np.float32)
        for prior, index in enumerate((0, 1, 2, 4)):  # all but the spread prior, which follows from the first
            root = np.maximum(offset + loadings @ self._maps[prior], 0)
            out[:, index, where] = root**2
            out[:, index, where] = np.maximum(out[:, index, where] * self._total_factor(out[:, index], genes), FLOOR)
        out[:, 3, where] = self._spread_prior(genes, out[:, 0])[:, where]
        return out.reshape(len(genes), len(PRIORS), *self.active.shape)

    def _total_factor(self, maps: np.ndarray, genes: np.ndarray) -> np.ndarray:
        """What makes the spots' total right, ``(g, 1)``: squaring a mean of roots loses their variance."""
        predicted = (self.measurement.matrix @ maps.T).sum(0)
        measured = (self.rates[:, genes] * self.measurement.area[:, None]).sum(0)
        return (measured / np.maximum(predicted, 1e-9)).clip(0.1, 10)[:, None].astype(np.float32)

    def _spread_prior(self, genes: np.ndarray, he: np.ndarray) -> np.ndarray:
        """The H&E prior times the spots' shrunken ratios, spread log-linearly into the gaps; flat ``(g, bins)``."""
        depth = self.gene_mean[genes] * self.measurement.area[:, None]
        expected = (self.measurement.matrix @ he.T) / self.measurement.area[:, None] * depth
        k = self.shape[genes]
        ratio = (self.rates[:, genes] * depth + k) / (expected + k)
        out = he.copy()
        out[:, self.active.ravel()] *= np.exp(self._spread @ np.log(ratio)).T.astype(np.float32)
        return out

    def spot_maps(self, genes: np.ndarray) -> np.ndarray:
        """Measured rates painted onto the bins under the spots, ``(len(genes), ny, nx)`` float32, zero in the gaps."""
        matrix, coverage = self.measurement.matrix, self.measurement.coverage
        painted = (matrix.T @ self.rates[:, genes]).T.reshape(-1, *coverage.shape)
        return (painted / np.where(coverage > 0, coverage, 1)).astype(np.float32)


def _gaussian_spread(spots: np.ndarray, bins: np.ndarray) -> sparse.csr_matrix:
    """Gaussian weights of the nearest spots, ``(bins, spots)``, rows sum to one; positions in pitches."""
    n = min(SPREAD_NEIGHBORS, len(spots))
    distance, index = (a.reshape(len(bins), n) for a in cKDTree(spots).query(bins, n))
    log_weight = -0.5 * (distance / SPREAD_PITCHES) ** 2
    weight = np.exp(log_weight - log_weight.max(1, keepdims=True))
    weight /= weight.sum(1, keepdims=True)
    rows = np.repeat(np.arange(len(bins)), n)
    return sparse.csr_matrix((weight.ravel(), (rows, index.ravel())), (len(bins), len(spots)))


def _components(centred: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Principal components over genes of ``(spots, genes)``, genes weighted.

    Returns
    -------
    Scores ``(spots, K)`` of unit variance, their standard deviations ``(K,)``, and loadings ``(K, genes)`` such that
    ``scores @ loadings`` is the input.
    """
    u, singular, vt = np.linalg.svd(centred * weight, full_matrices=False)
    n = min(MAX_COMPONENTS, int((singular > 1e-6 * max(singular[0], 1e-12)).sum()))
    root = np.sqrt(len(centred))
    # A component has no sign of its own; this one does not depend on the order of genes or spots.
    sign = np.where((u**3).sum(0) < 0, -1.0, 1.0)
    u, vt = u * sign, vt * sign[:, None]
    singular = singular[:n] / root
    return u[:, :n] * root, singular, singular[:, None] * vt[:n] / weight


def _context(prior_maps: np.ndarray, singular: np.ndarray, he: np.ndarray, active: np.ndarray) -> np.ndarray:
    """Leading metagenes as each source tells them, in one basis, above the stain maps.

    The basis are the principal directions of the joint prior (unit variance, sign fixed by the haematoxylin), so that
    what image and spots say of the same metagene can be compared bin by bin.
    """
    scaled = singular[:, None].astype(np.float32)
    of_source = dict(zip(("he", "space", "joint", "texture"), prior_maps, strict=True))
    joint = of_source["joint"] * scaled
    joint = joint - joint.mean(1, keepdims=True)
    _, vectors = np.linalg.eigh((joint @ joint.T).astype(float))
    basis = vectors[:, ::-1][:, :N_METAGENES].T.astype(np.float32)
    leading = basis @ joint
    sign = np.where((leading * he[0][active]).sum(1, keepdims=True) < 0, -1, 1)
    unit = sign / np.maximum(leading.std(1, keepdims=True), 1e-6)
    out = np.zeros((CONTEXT.n_channels, *active.shape), np.float32)
    for source in CONTEXT.sources:
        maps = unit * (basis @ (of_source[source] * scaled))
        maps = maps - maps.mean(1, keepdims=True)
        out[CONTEXT.of(source)][: len(maps), active] = np.clip(maps, -4, 4)
    out[CONTEXT.n_metagenes :] = np.clip(he[:N_BASE], -4, 4)
    return out


def _regressors(maps: np.ndarray, features: np.ndarray | None, obs: Observation) -> np.ndarray:
    """Hand-made maps and, with the same total variance, those from elsewhere."""
    if features is None or not len(features):
        return maps
    balance = np.float32(np.sqrt(len(maps) / len(features)))
    return np.concatenate([maps, balance * standardised(features, obs)])


def distill(
    obs: Observation,
    *,
    he: np.ndarray | None = None,
    features: np.ndarray | None = None,
    margin: int = MARGIN,
    use_he: bool = True,
) -> Distilled:
    """Distil the H&E of a section against its own spots.

    Parameters
    ----------
    obs
        The section.
    he
        ``he_features(obs)``, from a caller who has them.
    features
        ``(f, ny, nx)`` further image features on the grid of ``obs``, of any scale: those of the bundled student, of a
        pathology model. They are regressed on beside the hand-made ones, with as much say.
    margin
        Bins around the tissue where priors are still evaluated; the network was trained with the default.
    use_he
        False replaces every H&E feature by zero: what can be had from the spots alone.

    Returns
    -------
    Priors, context and tokens of every gene of ``obs``.
    """
    measurement, pitch = obs.measurement, pitch_of(obs.measurement.centres)
    area = measurement.area[:, None]
    mean = np.maximum((obs.counts / area).mean(0), 1e-9)  # counts per bin
    rates = (obs.counts / area) / mean
    roots = np.sqrt(rates)
    offset = roots.mean(0)
    # Counting noise of a square root is 1/2 whatever the count: this scale makes it equal over genes.
    values, singular, loadings = _components(roots - offset, np.sqrt(mean * area.mean()))

    active = ndimage.binary_dilation(obs.inside, iterations=margin) if margin else obs.inside
    maps = he_features(obs) if he is None else he
    if not use_he:
        maps = np.zeros_like(maps)
    lattice = Lattice(measurement.centres, pitch, active)
    regressors = _regressors(maps, features if use_he else None, obs)
    regression = AdditiveRegression(HEDesign(regressors, measurement, active), measurement.centres / pitch, lattice)
    fits, texture = regression.fit(values)  # he, space, joint
    prior_maps = np.stack([*(component_maps for _, component_maps in fits), texture])

    loo = [offset + choice.loo @ loadings for choice, _ in fits]
    r2 = np.stack([_r2(root, roots) for root in loo])
    expected = np.maximum(loo[2], np.sqrt(FLOOR)) ** 2 * mean * area
    expected *= obs.counts.sum(0) / expected.sum(0)
    shape = gamma_shape(obs.counts, expected)
    geometry = [np.full_like(mean, np.log2(length / 10)) for length in (obs.grid.bin_um, pitch)]
    depth = np.log10(mean * area.mean() + 0.01)
    token = np.stack([*r2.clip(-0.2, 1), depth, 0.5 * np.log10(shape), *geometry], 1)  # in the order of TOKEN
    return Distilled(
        active=active,
        context=_context(prior_maps, singular, maps, active),
        token=token.astype(np.float32),
        gene_mean=mean,
        shape=shape,
        r2=r2,
        measurement=measurement,
        rates=rates,
        _maps=prior_maps,
        _loadings=loadings,
        _offset=offset,
        _spread=_gaussian_spread(measurement.centres / pitch, (np.argwhere(active) + 0.5) / pitch),
    )
