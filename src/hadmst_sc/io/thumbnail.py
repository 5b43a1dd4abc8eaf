"""A small image of the section as scanpy and squidpy draw it: pixel = coordinate × scale, from coordinate 0 on."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from hadmst_sc.io.problems import Problems, logger
from hadmst_sc.io.resample import resample_rgb
from hadmst_sc.io.resolve import levels, transform

THUMBNAIL = 2000  # pixels along the longer side of the section, and squared the most in all: 12 MB
GLASS = (255, 255, 255)


def thumbnail(element: Any, key: str, to_system: np.ndarray) -> tuple[np.ndarray, float]:
    """Resample an image into a coordinate system.

    Both packages put the image's corner at coordinate 0. A section that starts elsewhere is padded with white up to
    there, and drawn with fewer pixels where the padding would need more than ``THUMBNAIL`` squared. What lies at
    negative coordinates cannot be shown by them, and is cut off.

    Parameters
    ----------
    element
        The image, as a pyramid or not.
    key
        Its name, for messages.
    to_system
        ``(3, 3)`` affine on (x, y, 1) from pixels of its finest level to the system.

    Returns
    -------
    ``(y, x, 3)`` uint8, and thumbnail pixels per unit of the system.
    """
    pyramid = levels(element)
    height, width = pyramid[0].sizes["y"], pyramid[0].sizes["x"]
    corners = transform(to_system, np.array([[0, 0], [width, 0], [0, height], [width, height]], float))
    low, high = corners.min(0), corners.max(0)
    extent = np.maximum(high, 1e-9 * (high - low))  # as far as they lie beyond 0
    if (low < -0.01 * (high - low)).any():
        logger.warning(
            "images/%s: lies at negative coordinates in part, where scanpy and squidpy show no image. "
            "Draw these bins with `img=False` (squidpy) or `img_key=None` (scanpy).",
            key,
        )
    scale = min(THUMBNAIL / (high - low).max(), THUMBNAIL / np.sqrt(extent.prod()))
    scale = min(scale, 1 / np.sqrt(abs(np.linalg.det(to_system[:2, :2]))))  # never finer than the image
    small, to_small = _shrunk(pyramid, key, scale * to_system[:2, :2])
    # From pixels of the thumbnail to those of the shrunk image.
    back = to_small @ np.linalg.inv(to_system) @ np.diag([1 / scale, 1 / scale, 1])
    size = np.maximum(np.ceil(extent * scale - 1e-6), 1).astype(int)
    drawn = Image.fromarray(small).transform(
        tuple(size.tolist()),
        Image.Transform.AFFINE,
        back[:2].ravel().tolist(),
        Image.Resampling.BILINEAR,
        fillcolor=GLASS,
    )
    return np.array(drawn), float(scale)


def _shrunk(pyramid: list[Any], key: str, to_thumbnail: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The image averaged to about a pixel of the thumbnail, ``(y, x, 3)``, and the affine from its finest pixels."""
    height, width = pyramid[0].sizes["y"], pyramid[0].sizes["x"]
    step = 1 / np.clip(np.linalg.norm(to_thumbnail, axis=0), 1e-9, 1)  # (x, y) pixels of the finest level
    enough = [
        level for level in pyramid if level.sizes["x"] * step[0] >= width and level.sizes["y"] * step[1] >= height
    ]
    level, problems = enough[-1], Problems(f"cannot draw image {key!r}")
    own = (step[1] * level.sizes["y"] / height, step[0] * level.sizes["x"] / width)
    shape = (int(np.ceil(height / step[1] - 1e-6)), int(np.ceil(width / step[0] - 1e-6)))
    pixels = resample_rgb(level, key, own, shape, problems)
    problems.raise_if_any()
    return np.ascontiguousarray(np.moveaxis(pixels, 0, -1)), np.diag([1 / step[0], 1 / step[1], 1])
