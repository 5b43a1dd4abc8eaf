"""What precedes distillation: the image laid on the spots, and its features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from scipy import ndimage
from skimage.transform import resize

from hadmst_sc.alignment.record import Alignment, align_image, align_spots
from hadmst_sc.alignment.register import agreement_of_turns, doubt, estimate_alignment, turned
from hadmst_sc.models import HadmstModel
from hadmst_sc.section.arguments import shown
from hadmst_sc.section.errors import ContractError, Problems, logger
from hadmst_sc.section.features import N_BASE, he_features
from hadmst_sc.section.observation import Observation


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


LARGEST = 1e12  # the squares of larger values would leave float32
ImageFeatures = np.ndarray | Callable[[np.ndarray, float], np.ndarray]
"""``(f, h, w)`` over the extent of the image, or what makes that of the image ``(3, y, x)`` uint8 and its µm per pixel.
"""


def check_features(features: ImageFeatures | None, problems: Problems) -> None:
    """Note what is wrong with maps; what a callable makes is looked at when it has made it."""
    if features is not None and not callable(features) and (told := _problem(features)):
        problems.add(told, ValueError)


def _problem(maps: object) -> str | None:
    """The message for features that are no maps, or ``None``."""
    wanted = "`features` needs maps (features, y, x) over the extent of the image"
    try:
        values = np.asarray(maps)
    except (TypeError, ValueError, RuntimeError):  # ragged lists; tensors on a device or with gradients
        return f"{wanted}, but {shown(maps)} is no array. Pass `features=np.asarray(maps)`."
    if values.dtype.kind not in "biuf":
        return f"{wanted}, but holds {shown(maps)} of type {values.dtype}. Pass numbers, or `features=None`."
    if values.ndim != 3 or not values.size:
        return f"{wanted}, but they have shape {values.shape}. Put the channels first."
    wrong = int((~(np.abs(values) <= LARGEST)).sum())  # also NaN, which compares false
    if wrong:
        return (
            f"`features` needs finite values of at most {LARGEST:g}, but {wrong:,} are not. Pass "
            f"`features=np.nan_to_num(features, posinf=0, neginf=0).clip(-1e6, 1e6)`."
        )
    return None


def image_features(features: ImageFeatures, obs: Observation, found: Alignment | None) -> np.ndarray:
    """``(f, ny, nx)`` float32 on the grid of ``obs``, read where the image shows what the spots saw.

    Parameters
    ----------
    features
        See :data:`ImageFeatures`; of any resolution.
    obs
        The section as it was read.
    found
        How its image lies; ``None`` takes it as it is.

    Raises
    ------
    ValueError
        If there are no maps, or values that are not finite.
    """
    made = features(obs.he, obs.grid.bin_um / obs.he_per_bin) if callable(features) else features
    if told := _problem(made):
        raise ValueError(told)
    maps = np.asarray(made, np.float32)
    shape = obs.grid.shape
    coarser = maps.shape[1] > shape[0] or maps.shape[2] > shape[1]  # then a bin is the average of what lies in it
    on_grid = np.stack([resize(one, shape, order=1, mode="edge", anti_aliasing=coarser) for one in maps])
    if found is None or not found.applied:
        return on_grid
    at = obs.grid.centres()
    where = (at + found.displacement_um(at * obs.grid.bin_um) / obs.grid.bin_um - 0.5).T.reshape(2, *shape)
    return np.stack([ndimage.map_coordinates(one, where, order=1, mode="nearest") for one in on_grid])
