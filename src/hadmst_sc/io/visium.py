"""Images and circles of a section, with the names and coordinate systems of ``spatialdata_io.visium``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from spatialdata.models import Image2DModel, ShapesModel
from spatialdata.transformations import Identity, Scale

AXES = ("y", "x")
COLOURS = {3: ["r", "g", "b"], 4: ["r", "g", "b", "a"]}
HALVINGS = 4  # largest number of pyramid levels below the full image
SMALLEST = 16  # fewest pixels along the shorter side of a level


def visium_images(name: str, pictures: Mapping[str, tuple[Any, float]]) -> dict[str, Any]:
    """Make images ``<name>_<kind>_image`` in the coordinate system ``name``; smaller copies also in their pixels' own.

    Parameters
    ----------
    pictures
        By kind ("full", "hires", "lowres"): ``(c, y, x)`` pixels, and their number along one pixel of the full image.
    """
    found = {}
    for kind, (pixels, scale) in pictures.items():
        systems: dict[str, Any] = {name: _scale(1 / scale)}
        levels = 0
        if kind == "full":
            levels = min(HALVINGS, max(0, int(np.log2(min(pixels.shape[1:]) / SMALLEST))))
        else:
            systems = {f"{name}_downscaled_{kind}": Identity(), **systems}
        found[f"{name}_{kind}_image"] = Image2DModel.parse(
            pixels,
            dims=("c", *AXES),
            c_coords=COLOURS.get(pixels.shape[0]),
            scale_factors=[2] * levels or None,
            transformations=systems,
        )
    return found


def visium_circles(name: str, xy: np.ndarray, ids: Any, diameter: float, scales: Mapping[str, float]) -> Any:
    """Make circles in pixels of the full image, with the coordinate systems of all its smaller copies.

    Parameters
    ----------
    scales
        Scale factors by kind, as in :func:`visium_images`.
    """
    systems = {f"{name}_downscaled_{kind}": _scale(scale) for kind, scale in scales.items() if kind != "full"}
    return ShapesModel.parse(
        np.asarray(xy, float),
        geometry=0,
        radius=diameter / 2,
        index=ids,
        transformations={name: Identity(), **systems},
    )


def _scale(factor: float) -> Any:
    return Identity() if factor == 1 else Scale([factor, factor], axes=AXES)
