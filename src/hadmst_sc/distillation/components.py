"""Components of a section: principal components over genes, each regressed on the H&E and on space.

Counts are variance-stabilised (square root) and rotated to principal components over genes, so noise
that genes do not share averages out and the cost does not grow with the panel. Each component is regressed on the H&E,
on space and on both (:mod:`hadmst_sc.regression.additive`). The leading ones get a second look
(:mod:`hadmst_sc.regression.stacking`). All seeds are fixed: the result is a function of the section alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from scipy import linalg, ndimage, sparse
from scipy.spatial import cKDTree

from hadmst_sc.regression.additive import AdditiveRegression, HEDesign
from hadmst_sc.regression.kriging import Lattice
from hadmst_sc.regression.stacking import MIN_SPOTS, N_STACKED, Inputs, Stacked, stacked
from hadmst_sc.section.features import BASE, N_BASE, he_features, standardised
from hadmst_sc.section.measurement import Measurement, pool
from hadmst_sc.section.observation import Observation

MAX_COMPONENTS = 64
MAX_BASIS = 2000  # genes from which components are computed; more only add noise, time and memory
GENES_AT_ONCE = 256  # genes per block, so that memory does not grow with the panel
MARGIN = 16  # bins around the tissue where priors are evaluated too, so that windows at the edge see no step
N_LEADING = 8
SOURCES = ("he", "space", "joint")
SPREAD_PITCHES = 0.5  # reach of the spots' log-ratios into the gaps
SPREAD_NEIGHBORS = 12


@dataclass(frozen=True)
class ContextLayout:
    """Channels of the context: leading components predicted from the image, space and both, then the stain maps."""

    sources: tuple[str, ...] = ("texture", "space", "joint")

    @property
    def n_leading(self) -> int:
        """Channels before the stain maps."""
        return len(self.sources) * N_LEADING

    @property
    def n_channels(self) -> int:
        """All channels."""
        return self.n_leading + N_BASE

    @property
    def names(self) -> list[str]:
        """Names of the channels, in their order."""
        return [f"{source} {k}" for source in self.sources for k in range(N_LEADING)] + list(BASE)

    def of(self, source: str) -> slice:
        """Channels of the components predicted from a source."""
        first = self.sources.index(source) * N_LEADING
        return slice(first, first + N_LEADING)

    @property
    def from_image(self) -> list[int]:
        """Channels that depend on the image alone."""
        return [*range(N_LEADING), *range(self.n_leading, self.n_channels)]


CONTEXT = ContextLayout()


@dataclass(frozen=True, eq=False)
class Panel:
    """Counts at the spots as rates in units of each gene's mean, and their square roots; computed in blocks of genes.

    Parameters
    ----------
    counts
        ``(spots, genes)`` measured counts.
    measurement
        Measurement operator of the spots.
    """

    counts: np.ndarray
    measurement: Measurement
    mean: np.ndarray = field(init=False)  # (genes,) counts per whole bin

    def __post_init__(self) -> None:
        area = self.measurement.area[:, None]
        per_bin = [(self.counts[:, block] / area).mean(0) for block in self.blocks()]
        object.__setattr__(self, "mean", np.maximum(np.concatenate(per_bin), 1e-9))

    def blocks(self) -> Iterator[slice]:
        """Slices of ``GENES_AT_ONCE`` genes that cover the panel."""
        n = self.counts.shape[1]
        return (slice(start, min(start + GENES_AT_ONCE, n)) for start in range(0, n, GENES_AT_ONCE))

    def rates(self, genes: np.ndarray | slice) -> np.ndarray:
        """Rates in units of the gene's mean, ``(spots, len(genes))`` float64."""
        return self.counts[:, genes] / self.measurement.area[:, None] / self.mean[genes]

    def roots(self, genes: np.ndarray | slice) -> np.ndarray:
        """Square roots of the rates, ``(spots, len(genes))`` float64: counting noise is the same at every spot."""
        return np.sqrt(self.rates(genes))

    @property
    def depth(self) -> np.ndarray:
        """Mean counts of each gene in a spot of mean area, ``(genes,)``."""
        return self.mean * self.measurement.area.mean()

    @property
    def root_depth(self) -> np.ndarray:
        """Factors ``(genes,)`` that give the roots of all genes the same counting noise, 1/2."""
        return np.sqrt(self.depth)

    def basis(self) -> np.ndarray:
        """Sorted indices of the ``MAX_BASIS`` genes whose roots vary most relative to counting noise."""
        variance = np.concatenate([self.roots(block).var(0) for block in self.blocks()]) * self.root_depth**2
        return np.sort(np.argsort(-variance, kind="stable")[:MAX_BASIS])


@dataclass(frozen=True, eq=False)
class Components:
    """Components of a section, from which any gene that was counted at its spots can be decoded.

    Parameters
    ----------
    active
        ``(ny, nx)`` bool: bins where maps are evaluated.
    context
        ``(CONTEXT.n_channels, ny, nx)`` float32: see :class:`ContextLayout`.
    bin_um
        Edge of a bin, µm.
    scores
        ``(spots, K)``: unit variance, uncorrelated.
    held_out
        ``(3, spots, K)`` leave-one-out predictions of the scores, in the order of ``SOURCES``.
    maps
        ``(4, K, active bins)`` float32 in the order of ``SOURCES``, then the texture.
    spread
        ``(active bins, spots)``: weights that interpolate values at the spots into the gaps.
    stack
        Second look at the leading components; ``None`` if it was not asked for or spots are too few.
    """

    active: np.ndarray
    context: np.ndarray
    bin_um: float
    scores: np.ndarray
    held_out: np.ndarray
    maps: np.ndarray
    spread: sparse.csr_matrix
    stack: Stacked | None = None


def _components(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Principal components over genes of ``(spots, genes)``, mean zero.

    Returns
    -------
    Scores ``(spots, K)`` of unit variance, and their standard deviations ``(K,)``.
    """
    by_gene = values.shape[1] <= len(values)  # use the smaller of the two Gram matrices: spots or genes can be many
    products = values.T @ values if by_gene else values @ values.T
    n = min(MAX_COMPONENTS, len(products))
    squares, vectors = linalg.eigh(products, subset_by_index=[len(products) - n, len(products) - 1])
    singular, vectors = np.sqrt(squares[::-1].clip(0)), vectors[:, ::-1]
    kept = singular > 1e-6 * max(singular[0], 1e-12)
    singular, vectors = singular[kept], vectors[:, kept]
    u = values @ vectors / singular if by_gene else vectors
    root = np.sqrt(len(values))
    # The sign of a component is arbitrary; this choice does not depend on the order of genes or spots.
    return u * np.where((u**3).sum(0) < 0, -1.0, 1.0) * root, singular / root


def _context(prior_maps: np.ndarray, singular: np.ndarray, he: np.ndarray, active: np.ndarray) -> np.ndarray:
    """Leading components predicted from each source, in one basis, followed by the stain maps.

    The basis consists of the principal directions of the joint prior (unit variance, sign fixed by the haematoxylin),
    so that the predictions of image and spots for the same component can be compared bin by bin.
    """
    scaled = singular[:, None].astype(np.float32)
    of_source = dict(zip((*SOURCES, "texture"), prior_maps, strict=True))
    joint = of_source["joint"] * scaled
    joint = joint - joint.mean(1, keepdims=True)
    _, vectors = np.linalg.eigh((joint @ joint.T).astype(float))
    basis = vectors[:, ::-1][:, :N_LEADING].T.astype(np.float32)
    leading = basis @ joint
    sign = np.where((leading * he[0][active]).sum(1, keepdims=True) < 0, -1, 1)
    unit = sign / np.maximum(leading.std(1, keepdims=True), 1e-6)
    out = np.zeros((CONTEXT.n_channels, *active.shape), np.float32)
    for source in CONTEXT.sources:
        maps = unit * ((basis * scaled.T) @ of_source[source])
        maps = maps - maps.mean(1, keepdims=True)
        out[CONTEXT.of(source)][: len(maps), active] = np.clip(maps, -4, 4)
    out[CONTEXT.n_leading :] = np.clip(he[:N_BASE], -4, 4)
    return out


def _gaussian_spread(spots: np.ndarray, bins: np.ndarray) -> sparse.csr_matrix:
    """Gaussian weights of the nearest spots, ``(bins, spots)``, rows sum to one; positions in pitches."""
    n = min(SPREAD_NEIGHBORS, len(spots))
    distance, index = (a.reshape(len(bins), n) for a in cKDTree(spots).query(bins, n))
    log_weight = -0.5 * (distance / SPREAD_PITCHES) ** 2
    weight = np.exp(log_weight - log_weight.max(1, keepdims=True))
    weight /= weight.sum(1, keepdims=True)
    rows = np.repeat(np.arange(len(bins)), n)
    return sparse.csr_matrix((weight.ravel(), (rows, index.ravel())), (len(bins), len(spots)))


def _regressors(maps: np.ndarray, features: np.ndarray | None, obs: Observation) -> np.ndarray:
    """Hand-crafted maps and, scaled to the same total variance, additional features."""
    if features is None or not len(features):
        return maps
    balance = np.float32(np.sqrt(len(maps) / len(features)))
    return np.concatenate([maps, balance * standardised(features, obs)])


def components(
    obs: Observation,
    panel: Panel,
    *,
    he: np.ndarray | None = None,
    features: np.ndarray | None = None,
    margin: int = MARGIN,
    use_he: bool = True,
    second_look: bool = True,
) -> Components:
    """Compute the components of a section; see :func:`~hadmst_sc.distillation.genes.distill` for the arguments."""
    measurement, pitch = obs.measurement, obs.measurement.pitch
    basis = panel.basis()
    roots = panel.roots(basis)
    scores, singular = _components((roots - roots.mean(0)) * panel.root_depth[basis])
    active = ndimage.binary_dilation(obs.inside, iterations=margin) if margin else obs.inside
    he_maps = he_features(obs) if he is None else he
    if not use_he:
        he_maps = np.zeros_like(he_maps)
    lattice = Lattice(measurement.centres, pitch, active)
    regressors = _regressors(he_maps, features if use_he else None, obs)
    regression = AdditiveRegression(HEDesign(regressors, measurement, active), measurement.centres / pitch, lattice)
    choices, maps = regression.fit(scores)  # in the order of SOURCES
    held_out, stack = np.stack([choice.loo for choice in choices]), None
    if second_look and len(scores) >= MIN_SPOTS and len(singular):
        of_image = Inputs(pool(regressors, measurement), (regressors[:, active],))
        stack = _stack(scores, singular, held_out, maps, of_image)
    return Components(
        active=active,
        context=_context(maps, singular, he_maps, active),
        bin_um=obs.grid.bin_um,
        scores=scores,
        held_out=held_out,
        maps=maps,
        spread=_gaussian_spread(measurement.centres / pitch, (np.argwhere(active) + 0.5) / pitch),
        stack=stack,
    )


def _stack(
    scores: np.ndarray, singular: np.ndarray, held_out: np.ndarray, maps: np.ndarray, features: Inputs
) -> Stacked:
    """Second look at the leading components; each counts by its variance."""
    scale = singular[:N_STACKED]
    n = len(scale)
    of_source = [
        (one[:, :n] * scale, some[:n] * scale[:, None].astype(np.float32))
        for one, some in zip(held_out, maps[: len(SOURCES)], strict=True)
    ]
    predictions = Inputs(
        np.concatenate([one[:, :N_LEADING] for one, _ in of_source], 1),
        tuple(some[:N_LEADING] for _, some in of_source),
    )
    first = of_source[SOURCES.index("space") :]  # not the image alone: the joint prediction knows what it knows
    found = stacked(scores[:, :n] * scale, first, features, predictions)
    return Stacked(found.maps / scale[:, None].astype(np.float32), found.held_out / scale)
