"""The only resampling of the image: exact area averages, a strip of rows at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from hadmst_sc.grid import Grid, area_weights
from hadmst_sc.io.problems import Problems
from hadmst_sc.io.resolve import levels

FINEST_UM = 2.5  # nuclei are ~8 µm: finer pixels cost memory and show the model nothing it uses
MAX_PER_BIN = 8
STRIP = 256  # rows that are in floating point at one time
FULL_SCALE = (255, 4095, 65535)  # 8, 12 and 16 bit


def check_image(element: Any, key: str, problems: Problems) -> bool:
    """Whether an image element is RGB or RGBA of a numeric type; notes the problem if not."""
    image = levels(element)[0]
    before = len(problems.found)
    if image.dims != ("c", "y", "x"):
        problems.add(f"images/{key}: needs the axes ('c', 'y', 'x'), but has {image.dims}.")
    elif image.sizes["c"] not in (3, 4):
        problems.add(
            f"images/{key}: needs 3 (RGB) or 4 (RGBA) channels, but has {image.sizes['c']}. H&E is told from colour; "
            f"pass the H&E as `image_key=`, or repeat a grey channel: `Image2DModel.parse(np.repeat(grey, 3, axis=0))`."
        )
    if image.dtype.kind not in "uif":
        problems.add(f"images/{key}: needs uint8, uint16 or floating point, but is {image.dtype}.")
    return len(problems.found) == before


def rgb_channels(image: xr.DataArray) -> list[int]:
    """Positions of red, green and blue: by name where the channels are so named, else the first three."""
    names = [str(name).lower() for name in image.coords["c"].values] if "c" in image.coords else []
    return [names.index(name) for name in "rgb"] if {"r", "g", "b"} <= set(names) else [0, 1, 2]


def resample_he(element: Any, key: str, grid: Grid, problems: Problems) -> tuple[np.ndarray, float]:
    """H&E on the grid, with a whole number ``k`` of pixels to the edge of a bin.

    The coarsest level that still has 2.5 µm per pixel (or the native size where that is coarser) is read, and averaged
    to the finest pixel that is not below either.

    Returns
    -------
    ``(3, ny * k, nx * k)`` uint8, and the µm per pixel of the level that was read.
    """
    pyramid = levels(element)
    height, width = pyramid[0].sizes["y"], pyramid[0].sizes["x"]
    target = max(FINEST_UM, grid.um_per_px) * (1 + 1e-6)
    level, he_um = pyramid[0], grid.um_per_px
    for other in pyramid[1:]:
        # Pyramids round odd sides: a level's factor is the ratio of sizes, not a power of two.
        um = grid.um_per_px * max(height / other.sizes["y"], width / other.sizes["x"])
        if he_um < um <= target:
            level, he_um = other, um
    k = int(np.clip(np.floor(grid.bin_um / max(FINEST_UM, he_um) + 1e-6), 1, MAX_PER_BIN))
    fine = grid.px_per_bin / k
    step = (fine * level.sizes["y"] / height, fine * level.sizes["x"] / width)
    shape = (grid.shape[0] * k, grid.shape[1] * k)
    return resample_rgb(level, key, step, shape, problems), float(he_um)


def resample_rgb(
    image: xr.DataArray, key: str, step: tuple[float, float], shape: tuple[int, int], problems: Problems
) -> np.ndarray:
    """Average an image over cells of ``step`` (y, x) pixels, to ``(3, *shape)`` uint8.

    Integers wider than 8 bit are scaled by the smallest of 255, 4095 and 65535 that holds their maximum, floating
    point by 1 or 255 likewise; anything outside is a problem.
    """
    n_rows, n_cols = image.sizes["y"], image.sizes["x"]
    down, across = area_weights(n_rows, step[0], shape[0]), area_weights(n_cols, step[1], shape[1]).T.tocsr()
    channels, total = rgb_channels(image), np.zeros((3, *shape), np.float32)
    low, high = np.inf, -np.inf
    for chunk in _chunk_edges(image, n_rows):
        pixels = np.asarray(image.data[:, chunk])[channels]  # each chunk of a lazy image is decoded once
        low, high = np.minimum(low, pixels.min()), np.maximum(high, pixels.max())  # NaN stays NaN
        for top in range(chunk.start, chunk.stop, STRIP):
            bottom = min(top + STRIP, chunk.stop)
            first = min(int(top / step[0]), shape[0] - 1)
            last = shape[0] if bottom == n_rows else min(shape[0], int(np.ceil(bottom / step[0])) + 1)
            weights = down[first:last, top:bottom]
            for c in range(3):
                strip = pixels[c, top - chunk.start : bottom - chunk.start]
                total[c, first:last] += (weights @ strip.astype(np.float64)) @ across
    full = _full_scale(image.dtype, float(low), float(high), key, problems)
    # Half-way values round up whatever the order of summation, so that flipped images give flipped results.
    return np.clip(np.floor(total * (255 / full) + (0.5 + 1e-3)), 0, 255).astype(np.uint8)


def _chunk_edges(image: xr.DataArray, n_rows: int) -> list[slice]:
    sizes = image.chunks[1] if image.chunks else (n_rows,)
    stops = np.cumsum(sizes)
    return [slice(int(stop - size), int(stop)) for stop, size in zip(stops, sizes, strict=True)]


def _full_scale(dtype: np.dtype, low: float, high: float, key: str, problems: Problems) -> float:
    """Value that means white; notes a problem and returns 1 if there is none."""
    if dtype == np.uint8:
        return 255
    candidates = FULL_SCALE if dtype.kind in "iu" else (1, 255)
    full = next((value for value in candidates if high <= value), None)
    if full is None or not low >= 0:  # also NaN, which compares false
        wanted = "0..65535" if dtype.kind in "iu" else "[0, 1] or [0, 255]"
        problems.add(
            f"images/{key}: {dtype} needs values in {wanted}, but has {low:.4g} to {high:.4g}. White must be known "
            f"to tell tissue from glass; rescale it to uint8."
        )
        return 1
    return float(full)
