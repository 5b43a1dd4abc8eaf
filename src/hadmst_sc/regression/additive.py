"""Additive regression at the spots: linear in the H&E, Gaussian process in space, and both at once.

A value is an intercept, a weighted sum of H&E features, a smooth map and noise. With ``Q`` the precision of map plus
noise and ``Φ`` the features, whose weights have variance ``1 / ρ``, the precision of the whole is

    ``P = Q - QΦ (ΦᵀQΦ + ρI)⁻¹ ΦᵀQ``

and the leave-one-out error of values ``z``, exact and without a refit, is ``Pz / diag P`` (Rasmussen & Williams 2006,
Eq. 5.12). Without a map ``Q`` is the identity and this is ridge regression; without features it is kriging.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import ndimage, sparse

from hadmst_sc.regression.kriging import CANDIDATES, Kernel, Lattice, SpotPrecision
from hadmst_sc.runtime import each_in_turn, side_by_side
from hadmst_sc.section.measurement import Measurement, pool

N_FOURIER = 192
FOURIER_SEED = 20_261_122  # fixed: the closed form is a function of the section alone
Shares = tuple[float, float]  # of the linear and the Fourier part in the H&E kernel
NO_HE: Shares = (0.0, 0.0)
HE_SHARES: tuple[Shares, ...] = ((1.0, 0.0), (0.5, 0.5), (0.2, 0.8))
BINS_AT_ONCE = 2**13
RIDGES = (0.05, 0.2, 0.6, 2.0, 6.0, 20.0, 60.0)


@dataclass(frozen=True)
class Recipe:
    """Terms and penalty of the regression of a component.

    Parameters
    ----------
    kernel
        Kernel of the smooth map; ``None`` for no map.
    shares
        Linear and Fourier shares of the H&E kernel; :data:`NO_HE` for no H&E.
    ridge
        ``ρ``: variance of the map (of the noise if there is no map) over that of the H&E term.
    """

    kernel: Kernel | None
    shares: Shares
    ridge: float


def recipes(*, he: bool, space: bool) -> Iterator[tuple[Kernel | None, Shares]]:
    """Kernels and H&E shares that a prior may use: H&E only, space only, or any combination."""
    for kernel, shares in product((None, *CANDIDATES) if space else (None,), (NO_HE, *HE_SHARES) if he else (NO_HE,)):
        if kernel is not None or shares != NO_HE:
            yield kernel, shares


class Choice:
    """Best leave-one-out prediction of each component so far, with its recipe (initially the mean)."""

    def __init__(self, values: np.ndarray, *, he: bool, space: bool) -> None:
        self.allowed = frozenset(recipes(he=he, space=space))
        self.values = values
        self.loo = np.zeros_like(values)  # (spots, K)
        self.error = (values**2).mean(0)  # (K,)
        self.recipe: list[Recipe | None] = [None] * values.shape[1]

    def offer(self, loo: np.ndarray, recipe: Recipe) -> None:
        """Use a recipe for the components that it predicts better, if the recipe is allowed."""
        if (recipe.kernel, recipe.shares) in self.allowed:
            self._take(loo, ((self.values - loo) ** 2).mean(0), [recipe] * len(self.recipe))

    def merge(self, other: Choice) -> None:
        """Use another choice for the components that it predicts better."""
        self._take(other.loo, other.error, other.recipe)

    def _take(self, loo: np.ndarray, error: np.ndarray, recipes: Sequence[Recipe | None]) -> None:
        # Require a gain of a thousandth of the error, so that rounding does not decide near-ties.
        for column in np.flatnonzero(error < self.error * (1 - 1e-3)).tolist():
            self.error[column], self.recipe[column] = error[column], recipes[column]
            self.loo[:, column] = loo[:, column]

    def groups(self) -> list[tuple[Recipe, list[int]]]:
        """Recipes in use, each with its components."""
        used = dict.fromkeys(recipe for recipe in self.recipe if recipe is not None)
        return [(recipe, [c for c, r in enumerate(self.recipe) if r == recipe]) for recipe in used]


class HEDesign:
    """The features of one section as regressors at spots and bins: a constant, a linear and a random Fourier block.

    Weights are learnt on averages over footprints, so they are applied to averages of the same width around each bin: a
    Gaussian with the standard deviation of a disc, a quarter of its diameter. Finer texture is left to the network; for
    a regression fitted at the spots it is an extrapolation.

    Parameters
    ----------
    maps
        ``(f, ny, nx)`` features.
    measurement
        Measurement operator, to average the features over the spots.
    active
        ``(ny, nx)`` bool: bins at which maps are evaluated.
    """

    def __init__(self, maps: np.ndarray, measurement: Measurement, active: np.ndarray) -> None:
        rng = np.random.default_rng(FOURIER_SEED)
        f = len(maps)
        self._frequency = (rng.standard_normal((f, N_FOURIER)) / np.sqrt(f)).astype(np.float32)
        self._phase = rng.uniform(0, 2 * np.pi, N_FOURIER).astype(np.float32)
        self._maps, self._active = maps, active
        self._width = measurement.diameter / 4  # bins
        spots = pool(maps, measurement)
        blocks = (spots, self._fourier(spots))
        self._centres = [block.mean(0) for block in blocks]
        # Unit mean squared norm makes penalties comparable for both blocks and for any number of features.
        self._scales = [
            np.sqrt(max(((block - centre) ** 2).sum(1).mean(), 1e-12))
            for block, centre in zip(blocks, self._centres, strict=True)
        ]
        self._at_spots = self._normalised(blocks)

    def _fourier(self, features: np.ndarray) -> np.ndarray:
        return np.cos(features @ self._frequency + self._phase)

    def _normalised(self, blocks: tuple[np.ndarray, np.ndarray]) -> list[np.ndarray]:
        parts = zip(blocks, self._centres, self._scales, strict=True)
        return [(block - centre) / scale for block, centre, scale in parts]

    @property
    def n_columns(self) -> int:
        """Number of regressors: the constant and both blocks."""
        return 1 + sum(block.shape[1] for block in self._at_spots)

    def at_spots(self, shares: Shares) -> np.ndarray:
        """Regressors at the spots, ``(spots, columns)``: the constant, then the blocks with a non-zero share."""
        blocks = [np.sqrt(share) * block for share, block in zip(shares, self._at_spots, strict=True) if share]
        return np.concatenate([np.ones((len(self._at_spots[0]), 1)), *blocks], 1)

    def expanded(self, shares: Shares, weights: np.ndarray) -> np.ndarray:
        """Expand weights ``(columns, K)`` of :meth:`at_spots` to weights of all regressors, ``(all columns, K)``."""
        parts, first = [weights[:1]], 1
        for share, block in zip(shares, self._at_spots, strict=True):
            n = block.shape[1]
            parts.append(np.sqrt(share) * weights[first : first + n] if share else np.zeros((n, weights.shape[1])))
            first += n if share else 0
        return np.concatenate(parts)

    def to_bins(self, weights: np.ndarray, *, smooth: bool = True, out: np.ndarray | None = None) -> np.ndarray:
        """Apply weights of all regressors in the bins: maps ``(K, active bins)`` float32.

        Features are averaged over the width of a footprint, or not if ``smooth`` is False.
        """
        weights, features = weights.T.astype(np.float32), self._features(smooth=smooth)
        maps = np.empty((len(weights), features.shape[1]), np.float32) if out is None else out

        def fill(start: int) -> None:
            here = slice(start, start + BINS_AT_ONCE)
            blocks = self._normalised((features[:, here].T, self._fourier(features[:, here].T)))
            maps[:, here] = weights[:, :1] + weights[:, 1:] @ np.concatenate(blocks, 1, dtype=np.float32).T

        side_by_side(fill, range(0, maps.shape[1], BINS_AT_ONCE))  # in blocks, because all regressors need much memory
        return maps

    def _features(self, *, smooth: bool) -> np.ndarray:
        """Features at the active bins, ``(f, active bins)``."""
        if not smooth:
            return self._maps[:, self._active]

        def smoothed(one: np.ndarray) -> np.ndarray:
            return np.asarray(ndimage.gaussian_filter(one, self._width, mode="nearest")[self._active])

        return np.stack(side_by_side(smoothed, self._maps))


class Solution:
    """Feature weights and leave-one-out errors, for all penalties from one factorisation.

    ``root`` is ``L`` with ``LᵀL = Q``; ``None`` is the identity.
    """

    def __init__(self, root: sparse.csr_matrix | None, design: np.ndarray, values: np.ndarray) -> None:
        white = design if root is None else root @ design
        white_values = values if root is None else root @ values
        eigenvalues, self._vectors = np.linalg.eigh(white.T @ white)
        self._eigenvalues = eigenvalues.clip(0)
        self._projected = self._vectors.T @ (white.T @ white_values)
        self._precise = white @ self._vectors if root is None else (root.T @ white) @ self._vectors  # QΦ, rotated
        self._values = values if root is None else root.T @ white_values  # Qz
        self._diagonal = np.ones(len(values)) if root is None else np.asarray(root.power(2).sum(0)).ravel()

    def errors(self, ridge: float) -> np.ndarray:
        """Leave-one-out errors, ``(spots, K)``."""
        shrunk = 1 / (self._eigenvalues + ridge)
        residual = self._values - self._precise @ (shrunk[:, None] * self._projected)
        # The precision of a spot given all others is positive; the bound guards against rounding.
        own = np.maximum(self._diagonal - self._precise**2 @ shrunk, 1e-3 * self._diagonal)
        return residual / own[:, None]

    def forget_spots(self) -> Solution:
        """Keep only what :meth:`weights` needs, whose size does not grow with the number of spots."""
        del self._precise, self._values, self._diagonal
        return self

    def weights(self, ridge: float, columns: list[int]) -> np.ndarray:
        """Weights of the features for some columns, ``(features, columns)``."""
        return self._vectors @ (self._projected[:, columns] / (self._eigenvalues + ridge)[:, None])


class AdditiveRegression:
    """Choose the best recipe for each component of a section.

    Parameters
    ----------
    design
        H&E regressors.
    spots
        ``(spots, 2)`` positions in pitches.
    lattice
        Lattice for kriging.
    """

    def __init__(self, design: HEDesign, spots: np.ndarray, lattice: Lattice) -> None:
        self._design, self._lattice = design, lattice
        self._precision = SpotPrecision(spots)

    def fit(self, values: np.ndarray) -> tuple[list[Choice], np.ndarray]:
        """Fit ``(spots, K)`` components, mean zero, from the H&E alone, from space alone, and from both.

        Returns
        -------
        The choices of the three with their leave-one-out predictions, and maps ``(4, K, active bins)`` float32: those
        of the three, then the H&E map again from features of single bins. This fourth one, the *texture*, is finer than
        the data that the weights were learnt on, so it is not an estimate.
        """
        choices, solutions = self._choices(values), dict[tuple[Kernel | None, Shares], Solution]()
        shares_of: dict[Kernel | None, list[Shares]] = {}
        for kernel, shares in recipes(he=True, space=True):
            shares_of.setdefault(kernel, []).append(shares)
        fits = each_in_turn(lambda kernel, shares: self._fit(kernel, shares, values), shares_of, shares_of.values())
        for some, some_solutions in fits:
            for choice, one in zip(choices, some, strict=True):
                choice.merge(one)
            solutions |= some_solutions
        return choices, self._maps(choices, solutions)

    @staticmethod
    def _choices(values: np.ndarray) -> list[Choice]:
        return [Choice(values, he=he, space=space) for he, space in ((True, False), (False, True), (True, True))]

    def _fit(
        self, kernel: Kernel | None, candidates: list[Shares], values: np.ndarray
    ) -> tuple[list[Choice], dict[tuple[Kernel | None, Shares], Solution]]:
        """Choices among the recipes of one kernel."""
        choices, solutions = self._choices(values), {}
        root = None if kernel is None else self._precision.root(kernel)
        for shares in candidates:
            solution = Solution(root, self._design.at_spots(shares), values)
            for ridge in RIDGES if shares != NO_HE else (1.0,):
                loo = values - solution.errors(ridge)
                for choice in choices:
                    choice.offer(loo, Recipe(kernel, shares, ridge))
            solutions[kernel, shares] = solution.forget_spots()
        return choices, solutions

    def _maps(self, choices: list[Choice], solutions: dict[tuple[Kernel | None, Shares], Solution]) -> np.ndarray:
        n = choices[0].values.shape[1]
        maps = np.empty((len(choices) + 1, n, int(self._lattice.active.sum())), np.float32)
        of_he = np.zeros((self._design.n_columns, len(choices), n))
        jobs: dict[Kernel | None, list[tuple[np.ndarray, list[int], np.ndarray]]] = {}
        for number, choice in enumerate(choices):
            for recipe, columns in choice.groups():
                weights = solutions[recipe.kernel, recipe.shares].weights(recipe.ridge, columns)
                of_he[:, number, columns] = self._design.expanded(recipe.shares, weights)
                rest = choice.values[:, columns] - self._design.at_spots(recipe.shares) @ weights
                jobs.setdefault(recipe.kernel, []).append((maps[number], columns, rest))
        self._design.to_bins(of_he.reshape(len(of_he), -1), out=maps[:-1].reshape(-1, maps.shape[-1]))
        self._design.to_bins(of_he[:, 0], smooth=False, out=maps[-1])
        # The choices share kernels: solve each once, for all the components that use it.
        for kernel, parts in jobs.items():
            if kernel is None:
                continue
            kriged = self._lattice.krige(kernel, np.concatenate([rest for *_, rest in parts], 1))
            for own, columns, _ in parts:
                own[columns] += kriged[: len(columns)]
                kriged = kriged[len(columns) :]
        return maps
