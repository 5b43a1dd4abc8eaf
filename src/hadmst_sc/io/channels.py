"""Channels of an image, the value that means white, and code that makes an image that can be read."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

COLOURS = {"red": ("r", "red"), "green": ("g", "green"), "blue": ("b", "blue")}
CLEAR = ("a", "alpha", "opacity", "transparency")
NEUTRAL = {"", "c", "ch", "channel", "image", "band", "rgb", "rgba", "he", "h", "e", "brightfield", "bf", "tl"}
OVERSHOOT = 0.1  # of floating point beyond its range, as interpolation leaves it
DIMMEST = 10.0  # floating point whose largest value lies between 1 and this has no known white


class Channels(NamedTuple):
    """Positions of red, green and blue, and of the opacity, if any.

    Parameters
    ----------
    named
        Whether the colours are known by name; else the first three are taken.
    alpha_named
        Whether the opacity is; else it is the fourth of four.
    strange
        Names that say that these may be no colours; empty where the colours are named or nothing is.
    """

    rgb: list[int]
    alpha: int | None
    named: bool
    alpha_named: bool
    strange: list[str]


def find_channels(image: xr.DataArray) -> Channels:
    """Colours by name ("r", "Red", "channel_red"), else by position."""
    names = [str(name) for name in image.coords["c"].values] if "c" in image.coords else []
    words = [_words(name) for name in names]
    places = {colour: [i for i, found in enumerate(words) if found & {*known}] for colour, known in COLOURS.items()}
    clear = [i for i, found in enumerate(words) if found & {*CLEAR}]
    named = all(len(found) == 1 for found in places.values())
    rgb = [found[0] for found in places.values()] if named else [0, 1, 2]
    alpha = clear[0] if named and len(clear) == 1 and clear[0] not in rgb else None
    alpha_named = alpha is not None
    if not named and image.sizes["c"] == 4:
        alpha = 3
    strange = [name for name, found in zip(names, words, strict=True) if not named and found - NEUTRAL]
    return Channels(rgb, alpha, named, alpha_named, strange)


def _words(name: str) -> set[str]:
    return set(re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()))


def full_scale(dtype: np.dtype, low: float, high: float) -> float | None:
    """Value that means white; ``None`` if values do not tell.

    Integers have the range of the smallest power of two that holds their maximum, from 8 to 16 bit: cameras of 10, 12
    or 14 bit are kept as 16 bit, and glass, the brightest of an H&E, is at least half as bright as the range allows.
    Floating point is in [0, 1] or [0, 255], up to an overshoot.
    """
    if dtype.kind in "iu":
        bits = max(8, int(high).bit_length())
        return float(2**bits - 1) if low >= 0 and bits <= 16 else None
    full = 1.0 if high <= 1 + OVERSHOOT else 255.0 if DIMMEST <= high <= 255 * (1 + OVERSHOOT) else None
    return full if full is not None and low >= -OVERSHOOT * full else None


def values_code(element: Any, key: str) -> str:
    """An expression for the pixels of the finest level."""
    if isinstance(element, xr.DataTree):
        return f"spatialdata.get_pyramid_levels(sdata[{key!r}], n=0).values"
    return f"sdata[{key!r}].values"


def made_from(key: str, suffix: str, code: str) -> str:
    """A sentence with the code that adds an image in the place of another; ``code`` gives its ``(c, y, x)`` pixels."""
    name = f"{key}_{suffix}"
    return (
        f"Make one: `sdata[{name!r}] = spatialdata.models.Image2DModel.parse({code}, dims=('c', 'y', 'x'), "
        f"transformations=spatialdata.transformations.get_transformation(sdata[{key!r}], get_all=True))`, then pass "
        f"`image_key={name!r}`."
    )
