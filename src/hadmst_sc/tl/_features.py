"""Image features from elsewhere, such as a pathology foundation model, brought onto the grid of a section."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage
from skimage.transform import resize

from hadmst_sc.alignment import Alignment
from hadmst_sc.arguments import shown
from hadmst_sc.contract import Observation
from hadmst_sc.io.problems import Problems

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
