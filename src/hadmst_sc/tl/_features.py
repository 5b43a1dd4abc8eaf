"""Image features from elsewhere, such as a pathology foundation model, brought onto the grid of a section."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage
from skimage.transform import resize

from hadmst_sc.alignment import Alignment
from hadmst_sc.contract import Observation

ImageFeatures = np.ndarray | Callable[[np.ndarray, float], np.ndarray]
"""``(f, h, w)`` over the extent of the image, or what makes that of the image ``(3, y, x)`` uint8 and its µm per pixel.
"""


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
    maps = features(obs.he, obs.grid.bin_um / obs.he_per_bin) if callable(features) else features
    maps = np.asarray(maps, np.float32)
    if maps.ndim != 3 or not maps.size:
        raise ValueError(
            f"`features` needs maps (features, y, x) over the extent of the image, but they have shape {maps.shape}. "
            "Put the channels first."
        )
    if not np.isfinite(maps).all():
        raise ValueError(
            f"`features` needs finite values, but {int((~np.isfinite(maps)).sum()):,} are not. Replace them by zero."
        )
    shape = obs.grid.shape
    coarser = maps.shape[1] > shape[0] or maps.shape[2] > shape[1]  # then a bin is the average of what lies in it
    on_grid = np.stack([resize(one, shape, order=1, mode="edge", anti_aliasing=coarser) for one in maps])
    if found is None or not found.applied:
        return on_grid
    at = obs.grid.centres()
    where = (at + found.displacement_um(at * obs.grid.bin_um) / obs.grid.bin_um - 0.5).T.reshape(2, *shape)
    return np.stack([ndimage.map_coordinates(one, where, order=1, mode="nearest") for one in on_grid])
