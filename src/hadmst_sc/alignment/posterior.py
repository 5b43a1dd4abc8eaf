"""Where the H&E lies against the spots: how probable each translation and rotation is, as the spots tell it.

Nothing here decides whether what is found may be applied.
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

# Before the spots are asked, an image is so many times as probably unmoved as moved, and as straight as turned; if not,
# then by a normal law of this spread, along each axis or in angle.
USUAL = 3.0
SD_UM, SD_DEG = 20.0, 1.5
# Of the translations that are tried, and how much closer they lie around the likeliest. Footprints blur what they see:
# between these the likelihood is smooth, and on public sections the same as from five times as many.
STEP_UM, CLOSER = 20.0, 4
N_ANGLES = 61  # that are weighed, up to three times the spread
# The log-likelihood is divided by it: as features and noise are not what the regression takes them for, a spot is only
# a part of a witness. `python benchmarks/registration.py` counts what is let through by chance, and what is missed.
TEMPERATURE = 4.0


class Posterior(NamedTuple):
    """Of a displacement: none, or one of those that were weighed."""

    places: np.ndarray  # (places, axes)
    share: np.ndarray  # (places,) of these if it is not none; sums to one
    log_bayes: float  # factor by which the spots speak for any of them, against none; natural logarithm
    log_likelihood: float  # of none, up to a constant of the section

    @property
    def mean(self) -> np.ndarray:
        """Of the displacement if it is not none, ``(axes,)``."""
        return self.share @ self.places

    @property
    def log_odds(self) -> float:
        """Of any of them against none."""
        return self.log_bayes - float(np.log(USUAL))

    @property
    def log_evidence(self) -> float:
        """Of none or any of them, up to a constant of the section."""
        return self.log_likelihood + float(np.logaddexp(0, self.log_odds) - np.logaddexp(0, -np.log(USUAL)))

    def square_error(self, taken: np.ndarray) -> float:
        """Mean square distance to what the displacement is taken for, ``(axes,)``."""
        some, none = special.expit([self.log_odds, -self.log_odds])
        return float(some * (self.share @ ((self.places - taken) ** 2).sum(1)) + none * (taken**2).sum())


def translations(section: Agreement, around: Alignment, max_um: float) -> Posterior:
    """Weigh translations within ``max_um``, as (dy, dx) in µm, with the rotation of ``around``.

    Their likelihood is worked out on a lattice that reaches beyond the bound, then closer around the likeliest, and
    interpolated.
    """
    step = min(STEP_UM, max_um / 2)
    places, tried = lattice(max_um, step / CLOSER), lattice(max_um + step, step)

    def at(some: np.ndarray) -> np.ndarray:
        return log_likelihoods(section, [replace(around, dy_um=float(dy), dx_um=float(dx)) for dy, dx in some])

    found = at(tried)
    coarse = RBFInterpolator(tried, found, kernel="cubic")(places)
    closer = places[(coarse + _log_prior(places, SD_UM)).argmax()] + lattice(step / 2, step / CLOSER)
    closer = closer[cdist(closer, tried).min(1) > 1e-6 * step]  # what was not tried yet
    tried, found = np.concatenate([tried, closer]), np.append(found, at(closer))
    return _weighed(places, RBFInterpolator(tried, found, kernel="cubic")(places), SD_UM)


def rotations(section: Agreement, around: Alignment, step_deg: float) -> Posterior:
    """Weigh rotations on top of ``around``, in degrees; they are tried no further apart than ``step_deg``."""
    far = 3 * SD_DEG
    places, n = np.linspace(-far, far, N_ANGLES), max(2, int(np.ceil(far / step_deg)))
    tried = np.linspace(-far, far, 2 * n + 1)
    turned = [replace(around, rotation_deg=around.rotation_deg + float(deg)) for deg in tried]
    found = log_likelihoods(section, turned)
    return _weighed(places[:, None], CubicSpline(tried, found)(places), SD_DEG)


def log_likelihoods(section: Agreement, there: Sequence[Alignment]) -> np.ndarray:
    """Of the image lying at each of some places, up to a constant of the section."""
    moved = [one.displacement_um(section.centres_um) for one in there]
    return np.array(side_by_side(section.log_likelihood, moved)) / TEMPERATURE


def lattice(max_um: float, step_um: float) -> np.ndarray:
    """Translations in squares within the bound, ``(places, 2)`` µm, none at all among them."""
    ticks = step_um * np.arange(-int(max_um / step_um + 1e-9), int(max_um / step_um + 1e-9) + 1)
    places = np.stack(np.meshgrid(ticks, ticks, indexing="ij"), -1).reshape(-1, 2)
    return places[np.hypot(*places.T) <= max_um * (1 + 1e-9)]


def _weighed(places: np.ndarray, log_likelihood: np.ndarray, sd: float) -> Posterior:
    prior, none = _log_prior(places, sd), float(log_likelihood[int((places**2).sum(1).argmin())])
    log_bayes = special.logsumexp(log_likelihood + prior) - special.logsumexp(prior) - none
    return Posterior(places, special.softmax(log_likelihood + prior), float(log_bayes), none)


def _log_prior(places: np.ndarray, sd: float) -> np.ndarray:
    return -(places**2).sum(1) / (2 * sd**2)
