"""Pixels of images: read from files or arrays, with channels recognised as colours and the value of white."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

BUDGET = 2_000_000_000  # largest number of pixels of a file, by its header: 6 GB as RGB
CHANNELS = (3, 4)
# Opened by class, because `PIL.Image.open` refuses images as large as a slide unless a global limit is raised.
FORMATS = (TiffImageFile, PngImageFile, JpegImageFile)
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_pixels(path: Path) -> np.ndarray:
    """Read the pixels of a TIFF, PNG or JPEG file, ``(y, x)`` or ``(y, x, channels)``, in its own type.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not such an image, cannot be decoded, or has more pixels than fit into memory.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} is not a file")
    with path.open("rb") as file:
        is_tiff = file.read(4) in TIFF
    try:
        return _tiff(path) if is_tiff else _decoded(path)
    except (OSError, SyntaxError, MemoryError) as error:
        raise ValueError(f"{path.name!r} cannot be read as TIFF, PNG or JPEG ({error})") from error


def _tiff(path: Path) -> np.ndarray:
    from skimage.io import imread  # reads 16 bit and planar colours, which Pillow does not

    try:
        with TiffImageFile(path) as header:
            _check_size(path, *header.size)
    except SyntaxError:  # a pixel format that Pillow does not know
        pass
    try:
        return np.asarray(imread(path))
    except ValueError:  # a compression that needs another package, but that Pillow may support
        return _decoded(path)


def _decoded(path: Path) -> np.ndarray:
    for kind in FORMATS:
        try:
            image = kind(path)
        except SyntaxError:  # Pillow's error for a file of another format
            continue
        with image:
            _check_size(path, *image.size)
            clear = image.mode in ("PA", "LA", "RGBa") or "transparency" in image.info
            keep = image.mode in ("RGB", "RGBA") or image.mode.startswith(("I", "F", "L"))
            wanted = "RGBA" if clear else image.mode if keep and image.mode != "LA" else "RGB"
            return np.asarray(image if wanted == image.mode else image.convert(wanted))
    raise ValueError(f"{path.name!r} is not a TIFF, PNG or JPEG")


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > BUDGET:
        raise ValueError(f"{path.name!r} has {width:,} x {height:,} pixels, more than {BUDGET:,}")


def channels_first(pixels: Any) -> Any:
    """Transpose an array ``(y, x)``, ``(y, x, c)`` or ``(c, y, x)`` to ``(c, y, x)``; lazy arrays stay lazy.

    Named axes are identified by name; otherwise the last axis is the channel axis if it has 3 or 4 entries.

    Raises
    ------
    ValueError
        If the array has another shape.
    """
    if isinstance(pixels, xr.DataArray):
        if set(pixels.dims) == {"c", "y", "x"}:
            return pixels.transpose("c", "y", "x").data
        pixels = pixels.data
    if not hasattr(pixels, "dask"):
        pixels = np.asarray(pixels)
    shape, dtype = pixels.shape, pixels.dtype
    if pixels.ndim == 2 and min(shape):
        return pixels[None]
    if pixels.ndim == 3 and min(shape):
        if shape[-1] in CHANNELS:
            return np.moveaxis(pixels, -1, 0) if not hasattr(pixels, "dask") else pixels.transpose(2, 0, 1)
        if shape[0] in (1, *CHANNELS):
            return pixels
        if shape[-1] == 1:
            return pixels[None, ..., 0]
    raise ValueError(f"has the shape {shape} and the type {dtype}, not (y, x), (y, x, 3 or 4) or (3 or 4, y, x)")


COLOURS = {"red": ("r", "red"), "green": ("g", "green"), "blue": ("b", "blue")}
CLEAR = ("a", "alpha", "opacity", "transparency")
NEUTRAL = {"", "c", "ch", "channel", "image", "band", "rgb", "rgba", "he", "h", "e", "brightfield", "bf", "tl"}
OVERSHOOT = 0.1  # share by which interpolated floating-point values may exceed their range
DIMMEST = 10.0  # the white level of floating point with a maximum between 1 and this is unknown


class Channels(NamedTuple):
    """Positions of the red, green and blue channels, and of the opacity, if any.

    Parameters
    ----------
    named
        True if the colours are identified by name; otherwise the first three channels are used.
    alpha_named
        True if the opacity is identified by name; otherwise it is the fourth of four channels.
    strange
        Channel names that suggest something other than colours; empty if the colours or no channels are named.
    """

    rgb: list[int]
    alpha: int | None
    named: bool
    alpha_named: bool
    strange: list[str]


def find_channels(image: xr.DataArray) -> Channels:
    """Find colours by name ("r", "Red", "channel_red"), else by position."""
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
    """White level of an image; ``None`` if its values do not determine it.

    Integers use the smallest bit depth from 8 to 16 that holds their maximum: images of 10, 12 or 14 bit cameras are
    stored as 16 bit, and glass, the brightest part of an H&E, reaches at least half of the range. Floating point is in
    [0, 1] or [0, 255], up to an overshoot.
    """
    if dtype.kind in "iu":
        bits = max(8, int(high).bit_length())
        return float(2**bits - 1) if low >= 0 and bits <= 16 else None
    full = 1.0 if high <= 1 + OVERSHOOT else 255.0 if DIMMEST <= high <= 255 * (1 + OVERSHOOT) else None
    return full if full is not None and low >= -OVERSHOOT * full else None


def values_code(element: Any, key: str) -> str:
    """Return an expression for the pixels of the finest level."""
    if isinstance(element, xr.DataTree):
        return f"spatialdata.get_pyramid_levels(sdata[{key!r}], n=0).values"
    return f"sdata[{key!r}].values"


def made_from(key: str, suffix: str, code: str) -> str:
    """Return a sentence with code that adds a corrected copy of an image; ``code`` gives its ``(c, y, x)`` pixels."""
    name = f"{key}_{suffix}"
    return (
        f"Make one: `sdata[{name!r}] = spatialdata.models.Image2DModel.parse({code}, dims=('c', 'y', 'x'), "
        f"transformations=spatialdata.transformations.get_transformation(sdata[{key!r}], get_all=True))`, then pass "
        f"`image_key={name!r}`."
    )
