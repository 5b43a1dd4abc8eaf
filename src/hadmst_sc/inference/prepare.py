"""Before distillation: register image and spots, compute the features of the image, and ask the spots about cells."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from hadmst_sc.alignment.cells import displaced
from hadmst_sc.alignment.record import Alignment, align_image, align_spots
from hadmst_sc.alignment.register import agreement_of_turns, doubt, estimate_alignment, turned
from hadmst_sc.distillation.cells import Strength, Support, strength
from hadmst_sc.distillation.genes import distill
from hadmst_sc.inference.kept import Kept
from hadmst_sc.inference.settings import ImageFeatures, Settings, features_problem, section_key
from hadmst_sc.runtime import memory_limit
from hadmst_sc.section.errors import ContractError, logger
from hadmst_sc.section.features import N_BASE, he_features
from hadmst_sc.section.grid import area_weights, linear_weights
from hadmst_sc.section.observation import Box, Observation

PER_FEATURE = 24  # peak bytes per bin of each image feature of the user, as measured with 1,024 of them


class Prepared(NamedTuple):
    """A section whose image and spots are registered, with its image features.

    Parameters
    ----------
    obs
        The section.
    he
        ``he_features(obs)``.
    features
        ``(f, ny, nx)`` of the distillation network, of the user and of cells; ``None`` without any.
    found
        Position of the H&E relative to the spots; ``None`` without registration.
    support
        ``(ny, nx)`` factor of the estimate in each bin, from cells; ``None`` without cells.
    strength
        Extent to which expression follows the cells; ``None`` without cells.
    """

    obs: Observation
    he: np.ndarray
    features: np.ndarray | None
    found: Alignment | None
    support: np.ndarray | None = None
    strength: Strength | None = None

    def of_part(self, obs: Observation, box: Box) -> Prepared:
        """The same for an observation of a box of the grid."""
        at = (slice(None), *box)
        features, support = self.features, self.support
        return self._replace(
            obs=obs,
            he=self.he[at],
            features=None if features is None else features[at],
            support=None if support is None else support[box],
        )


_last: dict[str, dict[str, Any]] = {}  # registration of the last section of this process, by the key of the section


def registration(obs: Observation, he: np.ndarray) -> dict[str, Any]:
    """Register the H&E (``found``), and score how well each orientation predicts held-out spots (``turns``).

    The last section is remembered, so that a check of a section and the run after it register it once.
    """
    key = section_key(obs)
    known = _last.get(key)
    if known is None:
        known = {"found": asdict(estimate_alignment(obs, he=he)), "turns": agreement_of_turns(obs, he=he)}
        _last.clear()
        _last[key] = known
    return known


def prepare(obs: Observation, settings: Settings, kept: Kept | None = None) -> Prepared:
    """Register image and spots unless ``settings.align`` is false, and compute the image features.

    Raises
    ------
    ContractError
        If the image is rotated or flipped relative to the spots.
    """
    he, align, features, found = he_features(obs), settings.align, settings.features, None
    if align:
        known = (kept or Kept())("registration", lambda: registration(obs, he))
        found, turns = Alignment.from_record(known["found"]), known["turns"]
        if problem := turned(obs, turns, found, he):
            raise ContractError("image and spots do not fit", [problem])
        if doubted := doubt(turns, found):
            logger.warning(doubted)
    extra = None if features is None else image_features(features, obs, found if align != "spots" else None)
    if found is not None:
        given, obs = obs, align_spots(obs, found) if align == "spots" else align_image(obs, found)
        he = he if obs is given else he_features(obs)
    maps = [] if extra is None else [extra]
    if settings.network is not None:
        maps.insert(0, settings.network.student.read(he[:N_BASE], obs.grid.bin_um))
    stacked = np.concatenate(maps) if maps else None
    if settings.cells is None:
        return Prepared(obs, he, stacked, found)
    support = Support.of(settings.cells, obs.inside, obs.grid.bin_um)
    without = distill(obs, he=he, features=stacked, second_look=False)
    learned = strength(support.relative, obs, without)
    if told := displaced(settings.cells.density.reshape(obs.grid.shape), he[0], obs.inside, obs.grid.bin_um):
        logger.warning("%s: %s, or pass `cells_key=None`", settings.cells.key, told)
    if not learned.used:
        logger.warning("the spots show no sign that expression follows %r: it is not used", settings.cells.key)
        return Prepared(obs, he, stacked, found, strength=learned)
    if learned.error > abs(learned.measured):
        logger.warning(
            "the spots are too few to tell how far expression follows %r (%.2f ± %.2f): it is taken as %.2f",
            *(settings.cells.key, learned.measured, learned.error, learned.used),
        )
    stacked = np.concatenate([*([] if stacked is None else [stacked]), support.features(obs.grid.bin_um)])
    return Prepared(obs, he, stacked, found, support.factor(learned.used), learned)


def image_features(features: ImageFeatures, obs: Observation, found: Alignment | None) -> np.ndarray:
    """The user's features on the grid of ``obs``, ``(f, ny, nx)`` float32, moved as the image is.

    Parameters
    ----------
    features
        See :data:`ImageFeatures`; any resolution.
    obs
        The section as it was read.
    found
        Registration of its image; ``None`` moves nothing.

    Raises
    ------
    ValueError
        If they are not maps, have values that are not finite, or would need more memory than the process may use.
    """
    made = features(obs.he, obs.grid.bin_um / obs.he_per_bin) if callable(features) else features
    if problem := features_problem(made):
        raise ValueError(problem)
    needed, limit = PER_FEATURE * len(made) * obs.grid.n_bins, memory_limit()
    if needed > limit:
        n = max(1, int(limit / 2 / (PER_FEATURE * obs.grid.n_bins)))
        raise ValueError(
            f"`features`: {len(made):,} maps on {obs.grid.n_bins:,} bins need about {needed / 1e9:.0f} GB of memory, "
            f"but this process may use {limit / 1e9:.0f} GB. Pass fewer, such as principal components: `features = "
            f"sklearn.decomposition.PCA({n}).fit_transform(features.reshape(len(features), -1).T).T.reshape({n}, "
            f"*features.shape[1:])`."
        )
    maps, shape = np.asarray(made, np.float32), obs.grid.shape
    extent: tuple[float, ...] = shape  # of the maps, bins
    if not callable(features) and obs.source is not None and obs.source.image_shape is not None:
        extent = tuple(side / obs.grid.px_per_bin for side in obs.source.image_shape)  # the last bins may stick out
    rows, columns = (
        (area_weights if n_in > covered else linear_weights)(n_in, n_in / covered, n_out)
        for n_in, covered, n_out in zip(maps.shape[1:], extent, shape, strict=True)
    )
    on_grid = np.stack([(columns @ (rows @ one).T).T for one in maps]).astype(np.float32)
    if found is None or not found.applied:
        return on_grid
    at = obs.grid.centres()
    where = (at + found.displacement_um(at * obs.grid.bin_um) / obs.grid.bin_um - 0.5).T.reshape(2, *shape)
    return np.stack([ndimage.map_coordinates(one, where, order=1, mode="nearest") for one in on_grid])
