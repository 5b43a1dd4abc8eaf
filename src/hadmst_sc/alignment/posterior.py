"""Posterior of the H&E's translation and rotation relative to the spots.

This module computes probabilities; :mod:`hadmst_sc.alignment.register` decides what is applied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy import special
from scipy.interpolate import CubicSpline, RBFInterpolator
from scipy.spatial.distance import cdist

from hadmst_sc.alignment.evidence import Agreement
from hadmst_sc.alignment.record import Alignment
from hadmst_sc.runtime import side_by_side

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
