"""Before distillation: register the image to the spots, and compute its features."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage
from skimage.transform import resize

from hadmst_sc.alignment.record import Alignment, align_image, align_spots
from hadmst_sc.alignment.register import agreement_of_turns, doubt, estimate_alignment, turned
from hadmst_sc.inference.settings import ImageFeatures, Settings, features_problem
from hadmst_sc.section.errors import ContractError, logger
from hadmst_sc.section.features import N_BASE, he_features
from hadmst_sc.section.observation import Observation


class Prepared(NamedTuple):
    """A section whose image and spots are registered, with its image features.

    Parameters
    ----------
    obs
        The section.
    he
        ``he_features(obs)``.
    features
        ``(f, ny, nx)`` of the distillation network and of the user; ``None`` without either.
    found
        Position of the H&E relative to the spots; ``None`` without registration.
    """

    obs: Observation
    he: np.ndarray
    features: np.ndarray | None
    found: Alignment | None


def prepare(obs: Observation, settings: Settings) -> Prepared:
    """Register image and spots unless ``settings.align`` is false, and compute the image features.

    Raises
    ------
    ContractError
        If the image is rotated or flipped relative to the spots.
    """
    he, align, features = he_features(obs), settings.align, settings.features
    found = estimate_alignment(obs, he=he) if align else None
    if found is not None:
        turns = agreement_of_turns(obs, he=he)
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
    return Prepared(obs, he, np.concatenate(maps) if maps else None, found)


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
        If they are not maps, or have values that are not finite.
    """
    made = features(obs.he, obs.grid.bin_um / obs.he_per_bin) if callable(features) else features
    if problem := features_problem(made):
        raise ValueError(problem)
    maps = np.asarray(made, np.float32)
    shape = obs.grid.shape
    coarser = maps.shape[1] > shape[0] or maps.shape[2] > shape[1]  # then each bin is an average
    on_grid = np.stack([resize(one, shape, order=1, mode="edge", anti_aliasing=coarser) for one in maps])
    if found is None or not found.applied:
        return on_grid
    at = obs.grid.centres()
    where = (at + found.displacement_um(at * obs.grid.bin_um) / obs.grid.bin_um - 0.5).T.reshape(2, *shape)
    return np.stack([ndimage.map_coordinates(one, where, order=1, mode="nearest") for one in on_grid])
