"""What precedes distillation: the image laid on the spots, and its features."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from hadmst_sc.alignment import Alignment, align_image, align_spots
from hadmst_sc.contract import ContractError, Observation
from hadmst_sc.features import N_BASE, he_features
from hadmst_sc.io.problems import logger
from hadmst_sc.models import HadmstModel
from hadmst_sc.registration import agreement_of_turns, doubt, estimate_alignment, turned
from hadmst_sc.tl._features import ImageFeatures, image_features


class Prepared(NamedTuple):
    """A section with image and spots in one place.

    Parameters
    ----------
    obs
        The section.
    he
        ``he_features(obs)``.
    features
        ``(f, ny, nx)`` of the student and of the user; ``None`` without either.
    found
        How the H&E lay; ``None`` where that was not asked.
    """

    obs: Observation
    he: np.ndarray
    features: np.ndarray | None
    found: Alignment | None


def prepare(
    obs: Observation,
    network: HadmstModel | None,
    *,
    align: bool | Literal["spots"],
    features: ImageFeatures | None,
) -> Prepared:
    """Lay image and spots on each other and read the image; arguments are those of :func:`predict`."""
    he = he_features(obs)
    found = estimate_alignment(obs, he=he) if align else None
    if found is not None:
        turns = agreement_of_turns(obs, he=he)
        if told := turned(obs, turns, found, he):
            raise ContractError("image and spots do not fit", [told])
        if doubted := doubt(turns, found):
            logger.warning(doubted)
    extra = None if features is None else image_features(features, obs, found if align != "spots" else None)
    if found is not None:
        given, obs = obs, align_spots(obs, found) if align == "spots" else align_image(obs, found)
        he = he if obs is given else he_features(obs)
    learned = [] if network is None else [network.student.read(he[:N_BASE], obs.grid.bin_um)]
    learned += [] if extra is None else [extra]
    return Prepared(obs, he, np.concatenate(learned) if learned else None, found)
