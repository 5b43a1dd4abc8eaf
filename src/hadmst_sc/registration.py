"""Registration of the H&E to the spots: where the image best predicts what the spots measured.

An image that is 20 µm off is no better than none, and the counts can tell: pooled to footprints in the right place, the
features of the image explain the leading metagenes of the left-out spots best. A translation is weighed first, as more
or less probable; then a rotation and a smooth deformation are sought, each kept only if errors at left-out spots fall
clearly. Scale is not sought.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy import special

from hadmst_sc.agreement import Agreement, Pooled, loo_errors, metagenes, sigmas_less
from hadmst_sc.alignment import Alignment, align_image
from hadmst_sc.contract import Observation
from hadmst_sc.deformation import MAX_DEG, find_field, find_rotation, unseen_errors
from hadmst_sc.features import he_features
from hadmst_sc.measurement import pool

__all__ = ["Alignment", "agreement_of_turns", "align_image", "doubt_of_turn", "estimate_alignment"]

MIN_SPOTS = 40
# Before the spots are asked, an image is as probably in place as not; if not, it is off by a normal law of this spread
# along each axis.
SD_UM = 20.0
STEP_UM = 10.0  # of the translations that are tried
# The log-likelihood is divided by it: as features and noise are not what the regression takes them for, a spot is only
# a part of a witness. `python benchmarks/registration.py` counts what is let through by chance, and what is missed.
TEMPERATURE = 4.0
# Gain over the stage before, in standard errors of the spots' errors: of a rotation, and of a field at unseen spots and
# unseen metagenes together. Strict, and for a rotation more so, as more is tried: to turn or bend what is straight does
# more harm than to leave what is not.
MIN_SIGMAS_ROTATION = 4.5
MIN_SIGMAS_FIELD = 2.0
# R² that a turn must add. On eight public sections the best wrong one is 0.12 to 0.33 below the right one.
MIN_TURNED = 0.1

TURNS: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # of maps ``(f, y, x)``, by what is done to the image
    "as it lies": lambda maps: maps,
    "flipped top to bottom": lambda maps: maps[:, ::-1],
    "flipped left to right": lambda maps: maps[:, :, ::-1],
    "turned by 180°": lambda maps: maps[:, ::-1, ::-1],
    "turned by 90° clockwise": lambda maps: np.rot90(maps, -1, (1, 2)),
    "turned by 90° counterclockwise": lambda maps: np.rot90(maps, 1, (1, 2)),
    "mirrored at its diagonal": lambda maps: maps.swapaxes(1, 2),
    "mirrored at its other diagonal": lambda maps: maps.swapaxes(1, 2)[:, ::-1, ::-1],
}


def estimate_alignment(obs: Observation, *, he: np.ndarray | None = None, max_um: float = 60.0) -> Alignment:
    """Find where the H&E lies against the spots.

    Metagenes are regressed on the image's features under the footprints. *Translation*: of all those within ``max_um``,
    beside a smooth map, the mean of the posterior; applied where the spots make it more probable than none. *Rotation*
    about the tissue's centre, up to ±6°, with its translation. *Field*: a smooth displacement of up to ±30 µm on top.
    What is straight is not turned or bent: rotation and field are applied only if the errors of the spots (paired, so
    that hard spots cancel) fall by more than ``MIN_SIGMAS_ROTATION`` and ``MIN_SIGMAS_FIELD`` standard errors, of a
    field at spots and metagenes that had no say in it.

    Parameters
    ----------
    obs
        The section.
    he
        ``he_features(obs)``, from a caller who has them.
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
    pooled = Pooled(obs.measurement, he_features(obs) if he is None else he)
    if pooled((0, 0)).std(0).max() < 1e-6:  # nothing that could be moved, turned or bent
        return none
    section = Agreement(pooled, values, centres_um, obs.grid.bin_um)
    found, nearby = _translation(section, none, max_um)
    return _field(section, _rotation(section, found, nearby, spot_um, max_um))


def agreement_of_turns(obs: Observation, *, he: np.ndarray | None = None) -> dict[str, float]:
    """How well the image predicts spots left out as it lies (first), and if it were turned or flipped: R² of metagenes.

    Images get turned and flipped on their way, and everything else about them then looks right. There is no entry where
    there is nothing to tell by, or not enough spots.
    """
    values, he = metagenes(obs), he_features(obs) if he is None else he
    if len(obs.spots) < MIN_SPOTS or (values**2).sum() < 1e-12:
        return {}
    turned = {name: pool(_fitted(turn(he), obs.grid.shape), obs.measurement) for name, turn in TURNS.items()}
    return {name: 1 - float(loo_errors(x, values).sum() / (values**2).sum()) for name, x in turned.items()}


def doubt_of_turn(turns: dict[str, float], found: Alignment) -> str | None:
    """What to say if the image agrees with the spots much better turned than where it was found to lie."""
    best = max(turns, key=lambda name: turns[name], default=None)
    if best is None or turns[best] <= max(found.score_there, turns["as it lies"]) + MIN_TURNED:
        return None
    return (
        f"the image foretells spots left out better if it is {best}: R² {turns[best]:.3f}, and "
        f"{turns['as it lies']:.3f} as it lies. Look at image and spots together, and mend the image or its "
        f"transformation."
    )


def image_tells(turns: dict[str, float], found: Alignment) -> bool:
    """Whether the image foretells spots left out better than turned or flipped, when it can tell nothing."""
    return found.score_there > max(list(turns.values())[1:])  # the first is as it lies


def _fitted(maps: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Cut off or repeated at the far edges: image and spots have their origin in common, whatever the turn."""
    maps = maps[:, : shape[0], : shape[1]]
    missing = [(0, side - own) for side, own in zip(shape, maps.shape[1:], strict=True)]
    return np.pad(maps, [(0, 0), *missing], "edge")


def _translation(section: Agreement, none: Alignment, max_um: float) -> tuple[Alignment, Alignment]:
    """The translation, applied or not, and the most probable one if there is one."""
    places = _places(max_um)
    n = len(section.centres_um)
    log_likelihood = np.array([section.log_likelihood(np.tile(place, (n, 1))) for place in places]) / TEMPERATURE
    log_posterior = log_likelihood - (places**2).sum(1) / (2 * SD_UM**2)
    share = special.softmax(log_posterior)
    in_place = int((places**2).sum(1).argmin())
    # Were it somewhere else, against where it is; as probable before the spots were asked.
    log_prior = special.logsumexp(-(places**2).sum(1) / (2 * SD_UM**2))
    log_odds = float(special.logsumexp(log_posterior) - log_prior - log_likelihood[in_place])
    dy, dx = share @ places
    nearby = replace(none, dy_um=float(dy), dx_um=float(dx))
    here, there = (section.errors(one.displacement_um(section.centres_um)) for one in (none, nearby))
    told = replace(
        none,
        score_here=section.score(here),
        score_there=section.score(there),
        sigmas=(sigmas_less(there, here), 0.0, 0.0, 0.0),
        log_odds=log_odds,
    )
    nearby = replace(told, dy_um=float(dy), dx_um=float(dx), applied=True)
    return (nearby if log_odds > 1e-6 else told), nearby


def _places(max_um: float) -> np.ndarray:
    """Translations that are tried, ``(places, 2)`` µm: a square lattice within the bound, none at all among them."""
    ticks = STEP_UM * np.arange(-int(max_um // STEP_UM), int(max_um // STEP_UM) + 1)
    places = np.stack(np.meshgrid(ticks, ticks, indexing="ij"), -1).reshape(-1, 2)
    return places[np.hypot(*places.T) <= max_um]


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
    before = section.errors_beside_map(found.displacement_um(section.centres_um))
    of_spots, of_metagenes, metagenes_before = unseen_errors(section, found)
    unseen = sigmas_less(of_spots, before), sigmas_less(of_metagenes, metagenes_before)
    found = replace(found, sigmas=(*found.sigmas[:2], *unseen))
    if sum(unseen) / len(unseen) ** 0.5 <= MIN_SIGMAS_FIELD:  # two tests as one (Stouffer)
        return found
    bent = replace(found, field=find_field(section, found), applied=True)
    errors = section.errors(bent.displacement_um(section.centres_um))
    return replace(bent, score_there=section.score(errors))
