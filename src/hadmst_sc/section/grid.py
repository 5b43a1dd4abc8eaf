"""The high-resolution grid: conversion between bins, image pixels and micrometres.

Axis law: arrays are ``(..., y, x)``, points are ``(y, x)``; bin ``i`` covers ``[i, i + 1)``, its centre is ``i + 0.5``.
Image pixels follow the same rule (the centre of pixel 0 is 0.5), so a length in pixels divided by ``px_per_bin`` is a
length in bins, without half-pixel terms.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import sparse


@dataclass(frozen=True)
class Grid:
    """A lattice of square bins that starts at the corner of the image.

    Parameters
    ----------
    shape
        Number of bins ``(ny, nx)``.
    bin_um
        Edge of a bin in µm.
    px_per_bin
        Edge of a bin in pixels of the image's finest level; need not be an integer.
    """

    shape: tuple[int, int]
    bin_um: float
    px_per_bin: float

    def __post_init__(self) -> None:
        if min(self.shape) < 1:
            raise ValueError(f"`shape` needs at least one bin per axis, but is {self.shape}.")
        if not (self.bin_um > 0 and self.px_per_bin > 0):
            raise ValueError(f"`bin_um` and `px_per_bin` must be positive, but are {self.bin_um}, {self.px_per_bin}.")

    @classmethod
    def over_image(cls, image_shape: tuple[int, int], um_per_px: float, bin_um: float) -> Grid:
        """Grid that covers an image of ``(height, width)`` pixels; the last bins may stick out."""
        px_per_bin = bin_um / um_per_px
        # An image that is a whole number of bins wide must not gain a bin by rounding.
        ny, nx = (max(1, int(np.ceil(side / px_per_bin - 1e-6))) for side in image_shape)
        return cls((ny, nx), float(bin_um), float(px_per_bin))

    @property
    def um_per_px(self) -> float:
        """Micrometres per pixel of the image's finest level."""
        return self.bin_um / self.px_per_bin

    @property
    def n_bins(self) -> int:
        """Number of bins, inside and outside the tissue."""
        return self.shape[0] * self.shape[1]

    def px_to_bins(self, points: np.ndarray) -> np.ndarray:
        """Points in image pixels to points in bins (same axis order in and out)."""
        return np.asarray(points, float) / self.px_per_bin

    def bins_to_px(self, points: np.ndarray) -> np.ndarray:
        """Points in bins to points in image pixels (same axis order in and out)."""
        return np.asarray(points, float) * self.px_per_bin

    def centres(self) -> np.ndarray:
        """Centres of all bins, ``(ny * nx, 2)`` as (y, x), in bins."""
        return np.stack(np.unravel_index(np.arange(self.n_bins), self.shape), 1) + 0.5


@dataclass(frozen=True)
class Window:
    """A rectangle of bins that is read (``outer``) and its part that is kept (``inner``), as ``(y0, x0, y1, x1)``."""

    outer: tuple[int, int, int, int]
    inner: tuple[int, int, int, int]

    @property
    def read(self) -> tuple[slice, slice]:
        """Slices of the outer box in the padded array (see :func:`windows`)."""
        y0, x0, y1, x1 = self.outer
        return slice(y0, y1), slice(x0, x1)

    @property
    def write(self) -> tuple[slice, slice]:
        """Slices of the inner box in the full array."""
        y0, x0, y1, x1 = self.inner
        return slice(y0, y1), slice(x0, x1)

    @property
    def keep(self) -> tuple[slice, slice]:
        """Slices of the inner box inside the outer one."""
        dy, dx = self.inner[0] - self.outer[0], self.inner[1] - self.outer[1]
        return (slice(dy, dy + self.inner[2] - self.inner[0]), slice(dx, dx + self.inner[3] - self.inner[1]))

    def within(self, shape: tuple[int, int]) -> Window:
        """The same window with its outer box clipped to an array of this shape."""
        y0, x0, y1, x1 = self.outer
        return Window((max(y0, 0), max(x0, 0), min(y1, shape[0]), min(x1, shape[1])), self.inner)


def windows(shape: tuple[int, int], core: int, halo: int, align: int) -> Iterator[Window]:
    """Cover ``shape`` with disjoint cores of edge ``core``, each read with a zero-weight border of ``halo`` bins.

    Outer boxes may reach beyond the array: the caller pads it, or clips them with :meth:`~Window.within`. ``core`` and
    ``halo`` are multiples of ``align`` so that every window has the same down-sampling phase as the whole array.

    Raises
    ------
    ValueError
        If ``core`` or ``halo`` is not a multiple of ``align``.
    """
    if core % align or halo % align or core < align:
        raise ValueError(f"`core` and `halo` need to be multiples of {align}, but are {core} and {halo}.")
    ny, nx = shape
    for y0 in range(0, ny, core):
        for x0 in range(0, nx, core):
            inner = (y0, x0, min(y0 + core, ny), min(x0 + core, nx))
            # Keep the full core in the outer box even at the far edge: equal shapes can be batched and reuse memory.
            yield Window((y0 - halo, x0 - halo, y0 + core + halo, x0 + core + halo), inner)


def area_weights(n_in: int, step: float, n_out: int) -> sparse.csr_matrix:
    """Weights that average ``n_in`` unit cells over ``n_out`` intervals of length ``step``, by exact overlap.

    Output ``j`` covers ``[j * step, (j + 1) * step)`` in input cells. The part of an interval beyond the input is
    ignored, and an interval without any overlap repeats the last cell.

    Returns
    -------
    ``(n_out, n_in)`` sparse, rows sum to one.
    """
    edges = np.arange(n_out + 1) * float(step)
    rows, cols, vals = [], [], []
    for j in range(n_out):
        low, high = min(edges[j], n_in), min(edges[j + 1], n_in)
        if high - low <= 1e-9:
            low, high = n_in - 1, n_in  # beyond the input
        first, last = int(low), min(n_in, int(np.ceil(high)))
        index = np.arange(first, last)
        overlap = np.minimum(index + 1, high) - np.maximum(index, low)
        rows.append(np.full(len(index), j))
        cols.append(index)
        vals.append(overlap / overlap.sum())
    flat = [np.concatenate(part) for part in (vals, rows, cols)]
    return sparse.csr_matrix((flat[0], (flat[1], flat[2])), shape=(n_out, n_in))


def linear_weights(n_in: int, step: float, n_out: int) -> sparse.csr_matrix:
    """Weights that interpolate unit cells linearly, at the centres of ``n_out`` intervals of length ``step``.

    Beyond the centre of the first or last cell, that cell is repeated.

    Returns
    -------
    ``(n_out, n_in)`` sparse, rows sum to one.
    """
    at = ((np.arange(n_out) + 0.5) * step - 0.5).clip(0, n_in - 1)
    low = np.floor(at).astype(int)
    cols, share = np.stack([low, np.minimum(low + 1, n_in - 1)], 1), at - low
    vals, rows = np.stack([1 - share, share], 1), np.repeat(np.arange(n_out), 2)
    return sparse.csr_matrix((vals.ravel(), (rows, cols.ravel())), shape=(n_out, n_in))
