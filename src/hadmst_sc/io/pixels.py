"""Read image files and arrays as pixels, channels first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
