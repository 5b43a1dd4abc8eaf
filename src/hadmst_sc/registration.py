"""Registration of the H&E to the spots: where the image best predicts what the spots measured.

An image that is 20 µm off is no better than none, and the counts can tell: pooled to footprints in the right place, the
features of the image explain the leading metagenes of the left-out spots best. A translation is sought first, then a
rotation, then a smooth deformation; each is kept only if errors at left-out spots fall clearly. Scale is not sought.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np

from hadmst_sc.agreement import Agreement, Bins, Pooled, loo_errors, metagenes, sigmas_less
from hadmst_sc.alignment import Alignment, align_image
from hadmst_sc.contract import Observation
from hadmst_sc.deformation import MAX_DEG, find_field, find_rotation, unseen_errors
from hadmst_sc.features import he_features

__all__ = ["Alignment", "align_image", "estimate_alignment"]

MIN_SPOTS = 40
# Gain over the stage before, in standard errors. Strict: to move what is right does more harm than to leave what is
# wrong. `python benchmarks/registration.py` counts what it lets through by chance, and what it misses.
MIN_SIGMAS = 3.0
# Of a rotation: more is tried, and more is there by chance.
MIN_SIGMAS_ROTATION = 4.5
# Of a field, at spots and at metagenes that had no say in it, besides `MIN_SIGMAS` at those that had. Where nothing is
# bent such a field mostly does harm there.
MIN_SIGMAS_UNSEEN = (2.0, 1.0)


def estimate_alignment(obs: Observation, *, max_um: float = 60.0) -> Alignment:
    """Find where the H&E lies against the spots.

    Metagenes are regressed on the image's features under the footprints. *Translation*: moved by whole bins, from
    coarse to fine; a quadratic through the scores around the best gives the fraction of a bin. *Rotation* about the
    tissue's centre, up to ±6°, with its translation. *Field*: a smooth displacement of up to ±30 µm on top.
    What is already right is not moved: a stage is applied only if the errors of the spots (paired, so that hard spots
    cancel) fall by more than ``MIN_SIGMAS`` standard errors, of a rotation by more than ``MIN_SIGMAS_ROTATION``, and of
    a field also at spots and metagenes that had no say in it.

    Parameters
    ----------
    obs
        The section.
    max_um
        Longest translation of the tissue's centre that is found, µm.

    Returns
    -------
    The alignment, not applied when there are fewer than ``MIN_SPOTS`` spots or the image does not vary.

    Raises
    ------
    ValueError
        If ``max_um`` is not a positive length.
    """
    if not 0 < max_um < np.inf:
        raise ValueError(
            f"`max_um` needs a positive length in µm, but is {max_um}. It bounds the search. Pass `max_um=60`."
        )
    none = Alignment(0.0, 0.0, 0.0, 0.0, False, n_spots=len(obs.spots))
    if len(obs.spots) < MIN_SPOTS:
        return none
    values = metagenes(obs)
    if (values**2).sum() < 1e-12:
        return none
    centres_um = obs.measurement.centres * obs.grid.bin_um
    middle = centres_um.mean(0)
    none = replace(none, centre_um=(float(middle[0]), float(middle[1])))
    spot_um = 2 * float(np.sqrt(np.median(obs.measurement.area) / np.pi)) * obs.grid.bin_um
    pooled = Pooled(obs.measurement, he_features(obs))
    found, nearby = _translation(none, pooled, values, obs.grid.bin_um, spot_um, max_um)
    if pooled((0, 0)).std(0).max() < 1e-6:  # nothing to turn or bend
        return found
    section = Agreement(pooled, values, centres_um, obs.grid.bin_um)
    return _field(section, _rotation(section, found, nearby, spot_um, max_um))


def _translation(
    none: Alignment, pooled: Pooled, values: np.ndarray, bin_um: float, spot_um: float, max_um: float
) -> tuple[Alignment, Alignment]:
    """The translation, applied or not, and the best one whether it is applied or not."""
    total = float((values**2).sum())

    @cache
    def errors(shift: Bins) -> np.ndarray:
        return loo_errors(pooled(shift), values)

    def score(shift: Bins) -> float:
        return 1 - float(errors(shift).sum()) / total

    # One bin further than asked: the peak of a shift just within reach may lie on the bin beyond.
    best = _search(score, max_um / bin_um + 1, max(1, round(spot_um / bin_um / 2)))
    around = np.array([[score((best[0] + y, best[1] + x)) for x in (-1, 0, 1)] for y in (-1, 0, 1)])
    sigmas = sigmas_less(errors(best), errors((0, 0)))
    none = replace(none, score_here=score((0, 0)), score_there=score(best), sigmas=(sigmas, 0.0, 0.0, 0.0))
    there = (np.array(best) + _peak(around)) * bin_um
    dy, dx = there * min(1, max_um / max(float(np.hypot(*there)), 1e-12))
    nearby = replace(none, dy_um=float(dy), dx_um=float(dx), applied=True)
    clear = score(best) >= around.max() and sigmas > MIN_SIGMAS
    return (nearby if clear else none), nearby


def _rotation(section: Agreement, found: Alignment, nearby: Alignment, spot_um: float, max_um: float) -> Alignment:
    """``found``, or a rotation with its translation where that is clearly better.

    The search starts from the translation ``nearby``, applied or not: under a rotation the best one is seldom clear.
    """
    turned = find_rotation(section, nearby, spot_um, max_um)
    errors, before = (section.errors(one.displacement_um(section.centres_um)) for one in (turned, found))
    sigmas = (found.sigmas[0], sigmas_less(errors, before), 0.0, 0.0)
    if sigmas[1] <= MIN_SIGMAS_ROTATION or abs(turned.rotation_deg) >= MAX_DEG:
        return replace(found, sigmas=sigmas)
    return replace(turned, sigmas=sigmas, score_there=section.score(errors))


def _field(section: Agreement, found: Alignment) -> Alignment:
    """``found``, or a field on top of it where that clearly helps what it was not fitted to."""
    if not section.n_metagenes > 1:  # none to be left out
        return found
    bent = replace(found, field=find_field(section, found), applied=True)
    errors, before = (section.errors(one.displacement_um(section.centres_um)) for one in (bent, found))
    of_spots, of_metagenes, metagenes_before = unseen_errors(section, found)
    unseen = sigmas_less(of_spots, before), sigmas_less(of_metagenes, metagenes_before)
    found, bent = (replace(one, sigmas=(*found.sigmas[:2], *unseen)) for one in (found, bent))
    clear = all(gain > least for gain, least in zip(unseen, MIN_SIGMAS_UNSEEN, strict=True))
    if not clear or sigmas_less(errors, before) <= MIN_SIGMAS:
        return found
    return replace(bent, score_there=section.score(errors))


def _search(score: Callable[[Bins], float], reach: float, step: int) -> Bins:
    """Best shift within ``reach`` bins of none: a lattice of ``step`` bins, then neighbours at ever smaller steps."""

    def best_of(candidates: list[Bins], so_far: Bins) -> Bins:
        within = [c for c in candidates if np.hypot(*c) <= reach + 1e-9]
        return max([so_far, *within], key=score)  # the first of equals: a tie moves nothing

    ticks = [step * i for i in range(-int(reach // step), int(reach // step) + 1)]
    best = best_of([(y, x) for y in ticks for x in ticks], (0, 0))
    while True:
        better = best_of([(best[0] + step * y, best[1] + step * x) for y in (-1, 0, 1) for x in (-1, 0, 1)], best)
        if better == best and step == 1:
            return best
        step = step if better != best else (step + 1) // 2
        best = better


def _peak(scores: np.ndarray) -> np.ndarray:
    """Offset (y, x) of the top of the least-squares quadratic through ``(3, 3)`` scores, at most half a bin."""
    low, high = scores[0].sum() - 2 * scores[1].sum() + scores[2].sum(), scores[:, 0] - 2 * scores[:, 1] + scores[:, 2]
    slope = np.array([scores[2].sum() - scores[0].sum(), scores[:, 2].sum() - scores[:, 0].sum()]) / 6
    mixed = (scores[2, 2] + scores[0, 0] - scores[0, 2] - scores[2, 0]) / 4
    curvature = np.array([[low / 3, mixed], [mixed, high.sum() / 3]])
    if not (np.linalg.eigvalsh(curvature) < 0).all():
        return np.zeros(2)
    return np.clip(-np.linalg.solve(curvature, slope), -0.5, 0.5)
