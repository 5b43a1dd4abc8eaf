"""Compare sizes with the available memory before anything of that size is allocated."""

from __future__ import annotations

from math import ceil, log10, sqrt
from typing import Any

import numpy as np

from hadmst_sc.io.resample import level_to_read
from hadmst_sc.io.resolve import Paired, affine, levels, transform
from hadmst_sc.runtime import memory_limit
from hadmst_sc.section.errors import Problems
from hadmst_sc.section.grid import Grid

PER_BIN = 2000  # bytes per bin of the smallest run; `tl` estimates the memory for given settings
MAX_BINS = 10**8  # also if the system does not report its memory
MAX_PIXELS = 25 * 10**9  # of the level that is read: minutes of decoding
FEWEST = 4  # smallest number of bins along the longer side: fewer show no map
FITTING = 200_000  # bins of the grid that a message suggests: a result of 200 genes on it fits in memory
MUCH_LARGER = 16  # image area / area that the spots span, above which the image is wrong, not the bins


def check_sizes(element: Any, image_key: str, spots: Paired, xy: np.ndarray, grid: Grid, problems: Problems) -> None:
    """Add a problem for a grid or image too large for this machine, or for bins too large to show anything.

    Parameters
    ----------
    element, image_key
        The image; only its sizes are used.
    spots, xy
        The spots, and their centres ``(spots, 2)`` as (x, y) in pixels of the image's finest level.
    grid
        The grid to check.
    """
    finest, (level, _) = levels(element)[0], level_to_read(element, grid)
    side_um = [finest.sizes[axis] * grid.um_per_px for axis in ("y", "x")]
    extent = f"an image of {side_um[0]:,.6g} x {side_um[1]:,.6g} µm"
    if max(grid.shape) < FEWEST:
        problems.add(
            f"`bin_um` needs to leave at least {FEWEST} bins along {extent}, but {grid.bin_um:g} leaves "
            f"{grid.shape[0]} x {grid.shape[1]}. Pass `bin_um={_nice(min(10, max(side_um) / 40)):g}`.",
            ValueError,
        )
        return
    memory, needed = memory_limit(), PER_BIN * grid.n_bins
    too_many = needed > memory or grid.n_bins > MAX_BINS
    pixels = level.sizes["y"] * level.sizes["x"]
    strip = 2 * level.sizes["c"] * level.dtype.itemsize * level.sizes["x"] * _rows_at_once(level)
    if not too_many and pixels <= MAX_PIXELS and strip <= memory:
        return
    span = np.ptp(xy, axis=0) / (finest.sizes["x"], finest.sizes["y"])
    bins = f"{grid.shape[0]:,} x {grid.shape[1]:,} bins of {grid.bin_um:g} µm"
    there = f"but {memory / 1e9:,.1f} GB are available"
    if too_many and span.prod() * MUCH_LARGER > 1:
        problems.add(
            f"`bin_um` needs bins that fit in memory, but {grid.bin_um:g} gives {bins} on {extent}: they need "
            f"{needed / 1e9:,.1f} GB, {there}. Pass `bin_um={_nice(sqrt(side_um[0] * side_um[1] / FITTING)):g}`.",
            ValueError,
        )
        return
    if not too_many:
        bins, needed = f"{pixels:.2g} pixels to read", max(strip, level.sizes["c"] * level.dtype.itemsize * pixels)
    problems.add(
        f"`image_key` needs an image that fits in memory, but images/{image_key}, {extent}, has {bins}: they need "
        f"{needed / 1e9:,.1f} GB, {there}. Keep the part under the spots: {_crop(element, spots, xy)}.",
        ValueError,
    )


def _rows_at_once(level: Any) -> int:
    """Return the number of rows of a lazy image that are decoded together; 0 for an image in memory."""
    return max(level.chunks[1]) if level.chunks else 0


def _nice(length: float) -> float:
    """Round up to 1, 2 or 5 times a power of ten."""
    power = 10.0 ** np.floor(log10(length) + 1e-9)
    return float(next(step * power for step in (1, 2, 5, 10) if step * power >= length * (1 - 1e-9)))


def _crop(element: Any, spots: Paired, xy: np.ndarray) -> str:
    """Return code that crops a section to the extent of its spots and a margin."""
    margin = 0.1 * np.ptp(xy, axis=0).max() + 10
    corners = transform(affine(element, spots.coordinate_system), np.array([xy.min(0) - margin, xy.max(0) + margin]))
    low, high = ([ceil(value) for value in corner] for corner in (corners.min(0), corners.max(0)))
    return (
        f"`sdata = spatialdata.bounding_box_query(sdata, axes=('x', 'y'), min_coordinate={low}, max_coordinate={high}, "
        f"target_coordinate_system={spots.coordinate_system!r})`"
    )
