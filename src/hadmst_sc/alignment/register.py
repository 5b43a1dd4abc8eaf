"""Registration: the translation, rotation and smooth field under which the H&E predicts held-out spots best.

An image that is 20 µm off is no better than none, and the counts show it: image features predict the leading components
at held-out spots best when they are pooled at the right position. Translation and rotation have a posterior; a smooth
deformation is kept only if it clearly reduces the errors at held-out spots. Scale is not estimated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from hadmst_sc.alignment.evidence import (
    SD_DEG,
    Agreement,
    Pooled,
    Posterior,
    leading_components,
    log_likelihoods,
    loo_errors,
    rotations,
    sigmas_less,
    translations,
)
from hadmst_sc.alignment.record import Alignment, align_image
from hadmst_sc.alignment.warp import MAX_DEG, find_field, find_rotation, unseen_errors
from hadmst_sc.section.features import he_features
from hadmst_sc.section.measurement import Measurement, pool
from hadmst_sc.section.observation import ENOUGH_SPOTS, Observation

__all__ = ["Alignment", "agreement_of_turns", "align_image", "doubt", "estimate_alignment", "turned"]

# Spots of a Visium slide. Of more spots, a random sample of this size estimates translation and rotation, which have
# three parameters; the field uses all spots.
MAX_WITNESSES = 5000
# Gain of a field over the previous stage, in standard errors of the spots' errors, at held-out spots and held-out
# components together. Strict: deforming a straight image does more harm than leaving a deformed one.
MIN_SIGMAS_FIELD = 2.0
# R² that a rotated or flipped image must gain. On eight public sections the best wrong orientation is 0.12 to 0.33
# below the right one.
MIN_TURNED = 0.1
# Spots, and standard errors by which another orientation must be better, to stop a run. On 14 public sections the right
# one is 3.5 to 20 better than the best wrong one; on parts of 60 spots a wrong one was up to 3.8 better.
MIN_SPOTS_TURNED, MIN_SIGMAS_TURNED = 100, 3.0
# Expected error of the position in µm above which a run warns.
MAX_ERROR_UM = 10.0

UNMOVED = "as it is"
TURNS: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # functions of maps ``(f, y, x)``, by name
    UNMOVED: lambda maps: maps,
    "flipped top to bottom": lambda maps: maps[:, ::-1],
    "flipped left to right": lambda maps: maps[:, :, ::-1],
    "turned by 180°": lambda maps: maps[:, ::-1, ::-1],
    "turned by 90° clockwise": lambda maps: np.rot90(maps, -1, (1, 2)),
    "turned by 90° counterclockwise": lambda maps: np.rot90(maps, 1, (1, 2)),
    "mirrored at its diagonal": lambda maps: maps.swapaxes(1, 2),
    "mirrored at its other diagonal": lambda maps: maps.swapaxes(1, 2)[:, ::-1, ::-1],
}
# The same as affine matrices on pixels (x, y, 1) of an image of height h and width w.
AFFINES = {
    "flipped top to bottom": "[[1, 0, 0], [0, -1, {h}], [0, 0, 1]]",
    "flipped left to right": "[[-1, 0, {w}], [0, 1, 0], [0, 0, 1]]",
    "turned by 180°": "[[-1, 0, {w}], [0, -1, {h}], [0, 0, 1]]",
    "turned by 90° clockwise": "[[0, -1, {h}], [1, 0, 0], [0, 0, 1]]",
    "turned by 90° counterclockwise": "[[0, 1, 0], [-1, 0, {w}], [0, 0, 1]]",
    "mirrored at its diagonal": "[[0, 1, 0], [1, 0, 0], [0, 0, 1]]",
    "mirrored at its other diagonal": "[[0, -1, {h}], [-1, 0, {w}], [0, 0, 1]]",
}


def estimate_alignment(obs: Observation, *, he: np.ndarray | None = None, max_um: float = 60.0) -> Alignment:
    """Estimate the displacement of the H&E relative to the spots.

    Components are regressed on the image's features under the footprints plus a smooth map. *Translation*: posterior
    mean of all translations within ``max_um``, applied if more probable than none. *Rotation* about the tissue's
    centre, up to ±6°, together with its translation: likewise. *Field*: a smooth displacement of up to ±30 µm on top,
    applied only if the errors of the spots (paired, so that hard spots cancel) fall by more than ``MIN_SIGMAS_FIELD``
    standard errors at held-out spots and held-out components.

    Parameters
    ----------
    obs
        The section.
    he
        ``he_features(obs)`` if already computed.
    max_um
        Longest translation of the tissue's centre that is considered, µm.

    Returns
    -------
    The alignment, not applied when there are fewer than ``ENOUGH_SPOTS`` spots or the image does not vary.

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
    if len(obs.spots) < ENOUGH_SPOTS:
        return none
    values = leading_components(obs)
    if (values**2).sum() < 1e-12:
        return none
    centres_um = obs.measurement.centres * obs.grid.bin_um
    middle = centres_um.mean(0)
    none = replace(none, centre_um=(float(middle[0]), float(middle[1])))
    spot_um = obs.measurement.diameter * obs.grid.bin_um
    pooled = Pooled(obs.measurement, he_features(obs) if he is None else he)
    if pooled((0, 0)).std(0).max() < 1e-6:  # a uniform image has no position
        return none
    everyone = Agreement(pooled, values, centres_um, obs.grid.bin_um)
    section = _witnesses(everyone, obs.measurement)
    lever_um = max(float(np.sqrt(((centres_um - middle) ** 2).sum(1).mean())), spot_um)
    step_deg = float(np.degrees(spot_um / 2 / lever_um))  # moves a typical footprint by its radius
    shift = translations(section, none, max_um)
    found, shift, turn = _rotation(section, *_translation(section, none, shift), shift, step_deg, max_um)
    of_shift = shift.square_error(np.array([found.dy_um, found.dx_um])) ** 0.5
    of_turn = np.radians(turn**0.5) * lever_um
    return _field(everyone, replace(found, error_um=float(np.hypot(of_shift, of_turn))))


def _witnesses(section: Agreement, measurement: Measurement) -> Agreement:
    """The section on a random sample of its spots, if there are many."""
    if len(measurement) <= MAX_WITNESSES:
        return section
    rows = np.random.default_rng(0).permutation(len(measurement))[:MAX_WITNESSES]
    return section.of_spots(np.sort(rows), measurement)


def agreement_of_turns(obs: Observation, *, he: np.ndarray | None = None) -> dict[str, float]:
    """R² of the image's predictions at held-out spots: as it is (first), and rotated or flipped in seven ways.

    Images are sometimes rotated or flipped by mistake, and nothing but the counts shows it. Empty if there are fewer
    than ``ENOUGH_SPOTS`` spots or the counts do not vary.
    """
    values, he = leading_components(obs), he_features(obs) if he is None else he
    if len(obs.spots) < ENOUGH_SPOTS or (values**2).sum() < 1e-12:
        return {}
    turned = {name: pool(_fitted(turn(he), obs.grid.shape), obs.measurement) for name, turn in TURNS.items()}
    return {name: 1 - float(loo_errors(x, values).sum() / (values**2).sum()) for name, x in turned.items()}


def turned(obs: Observation, turns: dict[str, float], found: Alignment, he: np.ndarray) -> str | None:
    """Error message if the counts prove that the image was rotated or flipped; else ``None``.

    Parameters
    ----------
    obs
        The section.
    turns
        ``agreement_of_turns(obs)``.
    found
        ``estimate_alignment(obs)``.
    he
        ``he_features(obs)``.
    """
    if not turns or len(obs.spots) < MIN_SPOTS_TURNED:
        return None
    best = max(turns, key=lambda name: turns[name])
    if turns[best] <= max(found.score_there, turns[UNMOVED]) + MIN_TURNED:
        return None
    values = leading_components(obs)
    here, there = (
        loo_errors(pool(_fitted(TURNS[name](he), obs.grid.shape), obs.measurement), values) for name in (UNMOVED, best)
    )
    if sigmas_less(there, here) < MIN_SIGMAS_TURNED:
        return None
    source = obs.source
    if source is None or source.image_shape is None:
        image, remedy = "the image", "Rotate or flip it back"
    else:
        image, key, system = f"images/{source.image_key}", source.image_key, source.coordinate_system
        affine = AFFINES[best].format(h=source.image_shape[0], w=source.image_shape[1])
        remedy = (
            f"Call `from spatialdata.transformations import Affine, Sequence, get_transformation, set_transformation; "
            f"set_transformation(sdata[{key!r}], Sequence([Affine({affine}, ('x', 'y'), ('x', 'y')), "
            f"get_transformation(sdata[{key!r}], {system!r})]), {system!r})`"
        )
    return (
        f"{image}: needs the orientation of the spots, but predicts counts of held-out spots better if it is {best} "
        f"(R² {turns[best]:.2f}, but {turns[UNMOVED]:.2f} as it is). It was rotated or flipped by mistake, or shows "
        f"another section. {remedy}, or pass `align=False` to use it as it is."
    )


def doubt(turns: dict[str, float], found: Alignment) -> str | None:
    """Warning if the image may not fit the spots, with what to do; ``None`` if there is no reason to doubt.

    Parameters
    ----------
    turns
        ``agreement_of_turns(obs)``; no warning if empty.
    found
        ``estimate_alignment(obs)``.
    """
    if not turns:
        return None
    unmoved, *turned = turns.values()
    best = max(turns, key=lambda name: turns[name])
    if turns[best] > max(found.score_there, unmoved) + MIN_TURNED:
        return (
            f"the image predicts held-out spots better if it is {best}: R² {turns[best]:.3f}, but {unmoved:.3f} as "
            f"it is. Compare image and spots (after a run: `pl.registration`), and correct the image or its "
            f"transformation."
        )
    if found.score_there <= max(turned):
        return (
            "the image predicts held-out spots no better than a rotated or flipped copy of itself. It may belong to "
            "another section, be misaligned by more than 60 µm or 6°, or show uniform tissue. The maps will rely on "
            "the spots alone."
        )
    if found.error_um > MAX_ERROR_UM:
        return (
            f"the position of the image relative to the spots is uncertain by about {found.error_um:.0f} µm, because "
            f"there are few spots or the tissue is uniform. Compare image and spots (after a run: "
            f"`pl.registration`), and do not interpret finer detail."
        )
    return None


def _fitted(maps: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Crop or pad maps at the far edges to ``shape``: image and spots share their origin in every orientation."""
    maps = maps[:, : shape[0], : shape[1]]
    missing = [(0, side - own) for side, own in zip(shape, maps.shape[1:], strict=True)]
    return np.pad(maps, [(0, 0), *missing], "edge")


def _translation(section: Agreement, none: Alignment, posterior: Posterior) -> tuple[Alignment, Alignment]:
    """Result with the translation applied only if it is probable, and with it applied in any case."""
    dy, dx = map(float, posterior.mean)
    nearby = replace(none, dy_um=dy, dx_um=dx)
    here, there = (section.errors(one.displacement_um(section.centres_um)) for one in (none, nearby))
    in_place = replace(
        none,
        score_here=section.score(here),
        score_there=section.score(there),
        sigmas=(sigmas_less(there, here), 0.0, 0.0, 0.0),
        log_odds=posterior.log_odds,
    )
    nearby = replace(in_place, dy_um=dy, dx_um=dx, applied=True)
    return (nearby if posterior.log_odds > 0 else in_place), nearby


def _rotation(
    section: Agreement, found: Alignment, nearby: Alignment, shift: Posterior, step_deg: float, max_um: float
) -> tuple[Alignment, Posterior, float]:
    """``found``, or a rotation with its translation if that is more probable.

    The search starts from the translation ``nearby``, even if that was not applied: if the image is rotated, the
    evidence for a translation alone is seldom clear.

    Returns
    -------
    The alignment, the posterior of its translation, and the expected squared error of its angle.
    """
    turned = find_rotation(section, nearby, step_deg, max_um)
    turn = rotations(section, turned, step_deg)
    turned = replace(turned, rotation_deg=turned.rotation_deg + float(turn.mean[0]))
    (at_angle,) = log_likelihoods(section, [turned])
    there = translations(section, turned, max_um)
    turned = replace(turned, dy_um=float(there.mean[0]), dx_um=float(there.mean[1]))
    errors, before = (section.errors(one.displacement_um(section.centres_um)) for one in (turned, found))
    # Rotation against none: prior odds, times a penalty for having searched the angle.
    log_prior = turn.log_odds + turn.log_likelihood - at_angle - (turned.rotation_deg / SD_DEG) ** 2 / 2
    log_odds = there.log_evidence - shift.log_evidence + log_prior
    probable = log_odds > 0 and abs(turned.rotation_deg) < MAX_DEG
    result = replace(
        turned if probable else found,
        log_odds_rotation=float(log_odds),
        sigmas=(found.sigmas[0], sigmas_less(errors, before), 0.0, 0.0),
    )
    if probable:
        return replace(result, score_there=section.score(errors)), there, turn.square_error(turn.mean)
    return result, shift, rotations(section, result, step_deg).square_error(np.zeros(1))


def _field(section: Agreement, found: Alignment) -> Alignment:
    """``found``, or a field on top of it if that clearly improves held-out spots and components."""
    if not section.n_components > 1:  # no component can be held out
        return found
    before = section.errors_beside_map(found.displacement_um(section.centres_um))
    of_spots, of_components, components_before = unseen_errors(section, found)
    unseen = sigmas_less(of_spots, before), sigmas_less(of_components, components_before)
    found = replace(found, sigmas=(*found.sigmas[:2], *unseen))
    if sum(unseen) / len(unseen) ** 0.5 <= MIN_SIGMAS_FIELD:  # two tests as one (Stouffer)
        return found
    bent = replace(found, field=find_field(section, found), applied=True)
    errors = section.errors(bent.displacement_um(section.centres_um))
    return replace(bent, score_there=section.score(errors))
