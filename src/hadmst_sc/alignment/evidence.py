"""Evidence of the counts about the position of the H&E, and its posterior.

Objective: leave-one-out error at the spots when image features predict the components. The position of the image with
the smallest error is the best one. Two regressions serve two purposes: on the image alone, to compare two positions
spot by spot (paired, so that hard spots cancel); on the image plus a smooth map, which absorbs what neighbouring spots
already know, as a likelihood. :mod:`hadmst_sc.alignment.register` decides what is applied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy import linalg, sparse, special
from scipy.interpolate import CubicSpline, RBFInterpolator
from scipy.spatial.distance import cdist

from hadmst_sc.alignment.record import Alignment
from hadmst_sc.regression.additive import Solution
from hadmst_sc.regression.kriging import KERNELS, NUGGETS, Kernel, SpotPrecision
from hadmst_sc.runtime import side_by_side
from hadmst_sc.section.measurement import Measurement, spacing
from hadmst_sc.section.observation import Observation

N_LEADING = 8
RIDGES = (0.02, 0.1, 0.5, 2.0, 8.0)

Bins = tuple[int, int]


def leading_components(obs: Observation) -> np.ndarray:
    """Leading principal components of the square-root rates, ``(spots, N_LEADING)``: mean zero, own variances."""
    area = obs.measurement.area[:, None]
    # Counting noise of sqrt(counts) is 1/2 for every gene; the mean area keeps it so.
    roots = np.sqrt(obs.counts / area * area.mean())
    roots = roots - roots.mean(0)
    wide = roots.shape[1] > roots.shape[0]
    gram = (roots @ roots.T if wide else roots.T @ roots).astype(float)
    n = len(gram)
    variance, vectors = linalg.eigh(gram, subset_by_index=[max(0, n - N_LEADING), n - 1])
    return vectors * np.sqrt(variance.clip(0)) if wide else roots @ vectors


class Pooled:
    """Mean features under displaced footprints; beyond the border the features repeat the edge.

    Parameters
    ----------
    measurement
        The footprints.
    maps
        ``(features, ny, nx)``.
    """

    def __init__(self, measurement: Measurement, maps: np.ndarray) -> None:
        self._maps = np.ascontiguousarray(maps.reshape(len(maps), -1).T)  # (bins, features)
        self._look(measurement)

    def through(self, measurement: Measurement) -> Pooled:
        """The same features under other footprints."""
        other = copy(self)
        other._look(measurement)
        return other

    def _look(self, measurement: Measurement) -> None:
        matrix = measurement.matrix
        self._shape, self._indptr, self._size = measurement.shape, matrix.indptr, matrix.shape
        self._y, self._x = np.divmod(matrix.indices, measurement.shape[1])
        self._spot = np.repeat(np.arange(len(measurement)), np.diff(matrix.indptr))
        # Same type as the maps: otherwise each product would first copy all maps.
        self._weights = (matrix.data / measurement.area[self._spot]).astype(self._maps.dtype)
        self._seen: dict[Bins, np.ndarray] = {}

    def __call__(self, shift: Bins) -> np.ndarray:
        """All footprints moved by the same whole number of bins, ``(spots, features)``."""
        if shift not in self._seen:  # hundreds of translations are tried; they interpolate a few dozen whole shifts
            self._seen[shift] = self._at(*shift)
        return self._seen[shift]

    def nearest(self, moved: np.ndarray) -> np.ndarray:
        """Each footprint moved by ``moved``, ``(spots, 2)``, rounded to whole bins; ``(spots, features)``."""
        return self._at(*np.rint(moved).astype(int)[self._spot].T)

    def displaced(self, moved: np.ndarray) -> np.ndarray:
        """Each footprint moved by its own ``moved``, ``(spots, 2)`` in bins, fractions included; ``(spots, features)``.

        Interpolates with quadratic B-splines, which blur every shift equally, whole or not. Linear interpolation blurs
        fractional shifts only, and would favour them.
        """
        (wy, wx), _ = splines(moved - np.rint(moved))
        return self._between(moved, [(wy, wx)])[0]

    def with_slopes(self, moved: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values of :meth:`displaced` and their derivatives along y and x, ``(2, spots, features)`` per bin."""
        (wy, wx), (vy, vx) = splines(moved - np.rint(moved))
        values, *slopes = self._between(moved, [(wy, wx), (vy, wx), (wy, vx)])
        return values, np.stack(slopes)

    def _between(self, moved: np.ndarray, weights: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
        """Weighted sums over the 3 × 3 whole shifts around ``moved``; weights ``(spots, 3)`` along y and along x."""
        whole = np.rint(moved).astype(int)
        together = bool((whole == whole[0]).all())
        dy, dx = whole[0].tolist() if together else whole[self._spot].T
        sums = [np.zeros((len(moved), self._maps.shape[1])) for _ in weights]
        for j in range(3):
            for i in range(3):
                shift = (dy + j - 1, dx + i - 1)
                there = self(shift) if together else self._at(*shift)
                for one, (along_y, along_x) in zip(sums, weights, strict=True):
                    one += (along_y[:, j] * along_x[:, i])[:, None] * there
        return sums

    def _at(self, dy: np.ndarray | int, dx: np.ndarray | int) -> np.ndarray:
        ny, nx = self._shape
        bins = np.clip(self._y + dy, 0, ny - 1) * nx + np.clip(self._x + dx, 0, nx - 1)
        return (sparse.csr_matrix((self._weights, bins, self._indptr), self._size) @ self._maps).astype(float)


def splines(offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quadratic B-splines at ``(spots, 2)`` offsets of up to half a bin: weights and slopes, ``(2, spots, 3)`` each."""
    t = offset.T
    weights = np.stack([(0.5 - t) ** 2 / 2, 0.75 - t**2, (0.5 + t) ** 2 / 2], -1)
    return weights, np.stack([t - 0.5, -2 * t, t + 0.5], -1)


class Basis(NamedTuple):
    """Displacement of each footprint in µm per unit of each parameter, ``(spots, parameters)`` along each axis."""

    along_y: sparse.csr_matrix
    along_x: sparse.csr_matrix

    def __call__(self, parameters: np.ndarray) -> np.ndarray:
        """Displacements ``(spots, 2)``, µm."""
        return np.stack([self.along_y @ parameters, self.along_x @ parameters], 1)


class Agreement:
    """Leave-one-out errors at the spots for any displacement of the image, and Gauss-Newton steps that reduce them.

    Parameters
    ----------
    pooled
        Features under displaced footprints.
    values
        ``(spots, K)`` components.
    centres_um
        ``(spots, 2)`` centres of the footprints as (y, x), from the corner of the grid.
    bin_um
        Edge of a bin.
    """

    def __init__(self, pooled: Pooled, values: np.ndarray, centres_um: np.ndarray, bin_um: float) -> None:
        self._pooled, self._values, self._bin_um = pooled, values, bin_um
        self.centres_um, self.n_components = centres_um, values.shape[1]

    def errors(self, moved_um: np.ndarray, *, rough: bool = False) -> np.ndarray:
        """Squared leave-one-out errors ``(spots,)``, footprints moved by ``(spots, 2)`` µm (``rough``: whole bins)."""
        moved = moved_um / self._bin_um
        return loo_errors(self._pooled.nearest(moved) if rough else self._pooled.displaced(moved), self._values)

    def log_likelihood(self, moved_um: np.ndarray) -> float:
        """Log-likelihood of the components with footprints moved by ``(spots, 2)`` µm, up to a constant.

        Features and a smooth map are fitted together; the noise of each component is its leave-one-out error. So what
        neighbouring spots already explain, and errors that they share, do not count as evidence for a position.
        """
        left = [np.log(errors.mean(0)).sum() for errors, _ in self._beside_maps(moved_um)]
        return -len(moved_um) / 2 * float(np.sum(left))

    def errors_beside_map(self, moved_um: np.ndarray) -> np.ndarray:
        """Errors as of :meth:`errors`, of image plus smooth map, with each component in units of its noise."""
        return np.sum([(errors / noise).sum(1) for errors, noise in self._beside_maps(moved_um)], 0)

    def _beside_maps(self, moved_um: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Squared leave-one-out errors ``(spots, k)`` and noise ``(k,)``, for groups of components."""
        design = _design(self._pooled.displaced(moved_um / self._bin_um))[0]
        for root, columns, noise in self._maps:
            yield _least_errors(root, design, self._values[:, columns]), noise

    @cached_property
    def _maps(self) -> list[tuple[sparse.csr_matrix, list[int], np.ndarray]]:
        """Roots of the spots' precision, each with the components it fits best with the image in place, and noise."""
        design = _design(self._pooled((0, 0)))[0]
        noise = np.stack([_least_errors(root, design, self._values).mean(0) for root in self._roots])
        best = noise.argmin(0)
        return [
            (self._roots[one], list(np.flatnonzero(best == one)), noise[one][best == one]) for one in np.unique(best)
        ]

    @cached_property
    def _roots(self) -> list[sparse.csr_matrix]:
        precision = SpotPrecision(self.centres_um / spacing(self.centres_um))
        return [precision.root(Kernel(KERNELS[-1], nugget)) for nugget in NUGGETS]

    def of_spots(self, rows: np.ndarray, measurement: Measurement) -> Agreement:
        """The same on some of the spots (``rows`` of the section's ``measurement``)."""
        few = measurement.subset(rows)
        return Agreement(self._pooled.through(few), self._values[rows], self.centres_um[rows], self._bin_um)

    def of_components(self, columns: slice) -> Agreement:
        """The same on some of the components."""
        part = copy(self)
        part._values, part.n_components = self._values[:, columns], self._values[:, columns].shape[1]
        part.__dict__.pop("_maps", None)  # depends on the components; `_roots` does not
        return part

    def score(self, errors: np.ndarray) -> float:
        """R² of leave-one-out errors."""
        return 1 - float(errors.sum() / (self._values**2).sum())

    def step(self, moved_um: np.ndarray, basis: Basis, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Normal equations of one Gauss-Newton step in the displacement parameters, around ``moved_um``.

        The residual of the regression is regressed on the slope of its prediction under each footprint. The regression
        weights are eliminated rather than held fixed (variable projection; Golub & Pereyra 1973, in the approximation
        of Kaufman 1975); otherwise displacement and weights would keep adjusting to each other. Components are weighted
        by their noise.

        Parameters
        ----------
        moved_um
            ``(spots, 2)``.
        basis
            Displacements per unit of each parameter.
        rows
            ``(spots,)`` bool, the spots to use.

        Returns
        -------
        Matrix ``(parameters, parameters)`` and right-hand side ``(parameters,)`` of the linear system of the step.
        """
        features, slopes = self._pooled.with_slopes(moved_um / self._bin_um)
        values, by_y, by_x = self._values[rows], basis.along_y[rows], basis.along_x[rows]
        x, scale = _design(features[rows])
        solution = Solution(None, x, values)
        ridge = min(RIDGES, key=lambda one: float((solution.errors(one) ** 2).sum()))
        noise = np.maximum((solution.errors(ridge) ** 2).mean(0), 1e-12 * (values**2).mean() + 1e-300)
        beta = solution.weights(ridge, list(range(values.shape[1])))
        along_y, along_x = slopes[:, rows] @ (beta[1:] / (scale * self._bin_um))
        gram = x.T @ x
        shrunk = np.linalg.inv(gram + ridge * np.eye(len(gram)))
        # Project out of the slopes what the weights can absorb. It spans few columns, so correct the products instead.
        followed = 2 * shrunk - shrunk @ gram @ shrunk
        left = values - x @ beta
        left -= x @ (shrunk @ (x.T @ left))
        yy, yx, xx = (
            sparse.diags((a * b / noise).sum(1))
            for a, b in ((along_y, along_y), (along_y, along_x), (along_x, along_x))
        )
        cross = by_y.T @ yx @ by_x
        normal = (by_y.T @ yy @ by_y + cross + cross.T + by_x.T @ xx @ by_x).toarray()
        right = by_y.T @ (along_y * left / noise).sum(1) + by_x.T @ (along_x * left / noise).sum(1)
        for k, variance in enumerate(noise):
            slope = by_y.T @ (along_y[:, k, None] * x) + by_x.T @ (along_x[:, k, None] * x)
            normal -= slope @ followed @ slope.T / variance
        return normal, right


def _design(features: np.ndarray) -> tuple[np.ndarray, float]:
    """Regressors ``(spots, 1 + features)``, the constant first, and the scale that the features were divided by."""
    x = features - features.mean(0)
    scale = float(np.sqrt(max((x**2).sum(1).mean(), 1e-12)))  # unit mean squared norm makes ridges comparable
    return np.concatenate([np.ones((len(x), 1)), x / scale], 1), scale


def loo_errors(features: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Squared leave-one-out errors of ridge regression, ``(spots,)`` summed over columns, best of ``RIDGES``."""
    solution = Solution(None, _design(features)[0], values)
    return min(((solution.errors(ridge) ** 2).sum(1) for ridge in RIDGES), key=np.sum)


def _least_errors(root: sparse.csr_matrix, design: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Squared leave-one-out errors ``(spots, K)``, with the best of ``RIDGES`` for each component; never all zero."""
    solution = Solution(root, design, values)
    errors = np.stack([solution.errors(ridge) ** 2 for ridge in RIDGES])
    best = errors.mean(1).argmin(0)
    return errors[best, :, np.arange(len(best))].T + 1e-12 * (values**2).mean() + 1e-300


def sigmas_less(errors: np.ndarray, reference: np.ndarray) -> float:
    """Standard errors by which squared errors are smaller than reference errors at the same spots."""
    gain = np.sqrt(reference) - np.sqrt(errors)  # roots, because squares have heavy tails
    spread = gain.std() / np.sqrt(len(gain))
    return float(gain.mean() / spread) if spread > 0 else 0.0


# Prior odds 3:1 that the image is in place; a shift (per axis) or rotation, if any, is normal with this standard
# deviation.
USUAL = 3.0
SD_UM, SD_DEG = 20.0, 1.5
# Step between the translations that are tried, and how many times finer it is around the most likely one. Footprints
# blur the image, so the likelihood is smooth in between: on public sections five times as many points gave the same.
STEP_UM, CLOSER = 20.0, 4
N_ANGLES = 61  # grid of the posterior, up to three standard deviations
# Tempering: the log-likelihood is divided by this, because the noise model is misspecified and each spot carries less
# information than its likelihood claims. `python benchmarks/registration.py` counts false and missed registrations.
TEMPERATURE = 4.0


class Posterior(NamedTuple):
    """Posterior of a displacement: a point mass at zero plus a grid of candidates."""

    places: np.ndarray  # (places, axes) candidates
    share: np.ndarray  # (places,) probability of each, given that the displacement is not zero; sums to one
    log_bayes: float  # natural log Bayes factor of any displacement against none
    log_likelihood: float  # at zero, up to a constant of the section

    @property
    def mean(self) -> np.ndarray:
        """Mean displacement given that it is not zero, ``(axes,)``."""
        return self.share @ self.places

    @property
    def log_odds(self) -> float:
        """Natural log posterior odds of any displacement against none."""
        return self.log_bayes - float(np.log(USUAL))

    @property
    def log_evidence(self) -> float:
        """Log marginal likelihood, displaced or not, up to a constant of the section."""
        return self.log_likelihood + float(np.logaddexp(0, self.log_odds) - np.logaddexp(0, -np.log(USUAL)))

    def square_error(self, taken: np.ndarray) -> float:
        """Posterior mean of the squared distance to the chosen displacement ``taken``, ``(axes,)``."""
        some, none = special.expit([self.log_odds, -self.log_odds])
        return float(some * (self.share @ ((self.places - taken) ** 2).sum(1)) + none * (taken**2).sum())


def translations(section: Agreement, around: Alignment, max_um: float) -> Posterior:
    """Posterior of translations within ``max_um``, as (dy, dx) in µm, with the rotation of ``around``.

    The likelihood is evaluated on a lattice that reaches beyond the bound, then on a finer one around the maximum, and
    interpolated.
    """
    step = min(STEP_UM, max_um / 2)
    places, tried = lattice(max_um, step / CLOSER), lattice(max_um + step, step)

    def at(some: np.ndarray) -> np.ndarray:
        return log_likelihoods(section, [replace(around, dy_um=float(dy), dx_um=float(dx)) for dy, dx in some])

    found = at(tried)
    coarse = RBFInterpolator(tried, found, kernel="cubic")(places)
    closer = places[(coarse + _log_prior(places, SD_UM)).argmax()] + lattice(step / 2, step / CLOSER)
    closer = closer[cdist(closer, tried).min(1) > 1e-6 * step]  # not evaluated yet
    tried, found = np.concatenate([tried, closer]), np.append(found, at(closer))
    return _weighed(places, RBFInterpolator(tried, found, kernel="cubic")(places), SD_UM)


def rotations(section: Agreement, around: Alignment, step_deg: float) -> Posterior:
    """Posterior of rotations on top of ``around``, in degrees; evaluated at least every ``step_deg``."""
    far = 3 * SD_DEG
    places, n = np.linspace(-far, far, N_ANGLES), max(2, int(np.ceil(far / step_deg)))
    tried = np.linspace(-far, far, 2 * n + 1)
    turned = [replace(around, rotation_deg=around.rotation_deg + float(deg)) for deg in tried]
    found = log_likelihoods(section, turned)
    return _weighed(places[:, None], CubicSpline(tried, found)(places), SD_DEG)


def log_likelihoods(section: Agreement, there: Sequence[Alignment]) -> np.ndarray:
    """Tempered log-likelihood of each candidate position, up to a constant of the section."""
    moved = [one.displacement_um(section.centres_um) for one in there]
    return np.array(side_by_side(section.log_likelihood, moved)) / TEMPERATURE


def lattice(max_um: float, step_um: float) -> np.ndarray:
    """Square lattice of translations within the bound, ``(places, 2)`` µm; contains zero."""
    ticks = step_um * np.arange(-int(max_um / step_um + 1e-9), int(max_um / step_um + 1e-9) + 1)
    places = np.stack(np.meshgrid(ticks, ticks, indexing="ij"), -1).reshape(-1, 2)
    return places[np.hypot(*places.T) <= max_um * (1 + 1e-9)]


def _weighed(places: np.ndarray, log_likelihood: np.ndarray, sd: float) -> Posterior:
    prior, none = _log_prior(places, sd), float(log_likelihood[int((places**2).sum(1).argmin())])
    log_bayes = special.logsumexp(log_likelihood + prior) - special.logsumexp(prior) - none
    return Posterior(places, special.softmax(log_likelihood + prior), float(log_bayes), none)


def _log_prior(places: np.ndarray, sd: float) -> np.ndarray:
    return -(places**2).sum(1) / (2 * sd**2)
