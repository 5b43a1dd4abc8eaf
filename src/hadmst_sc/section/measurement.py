"""The measurement operator ``A``: every platform observes sums of high-resolution bins.

``A[s, i]`` is the share of bin ``i`` inside the footprint of observation ``s``, from exact areas of overlap, so
``A @ hr`` are expected counts per observation if ``hr`` are expected counts per bin.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree


@dataclass(frozen=True, eq=False)
class Measurement:
    """Sparse operator, observations × bins.

    Parameters
    ----------
    matrix
        ``(spots, ny * nx)`` area fractions in ``[0, 1]``.
    shape
        ``(ny, nx)`` of the grid.
    centres
        ``(spots, 2)`` footprint centres as (y, x), in bins.
    """

    matrix: sparse.csr_matrix
    shape: tuple[int, int]
    centres: np.ndarray
    area: np.ndarray = field(init=False)  # (spots,) area of the footprint on the grid, in bins

    def __post_init__(self) -> None:
        spots, bins = self.matrix.shape
        if bins != self.shape[0] * self.shape[1] or self.centres.shape != (spots, 2):
            raise ValueError(
                f"`matrix` {self.matrix.shape}, `shape` {self.shape} and `centres` {self.centres.shape} do not match."
            )
        object.__setattr__(self, "area", np.asarray(self.matrix.sum(1)).ravel())

    def __len__(self) -> int:
        return self.matrix.shape[0]

    @cached_property
    def pitch(self) -> float:
        """Distance between neighbouring spots in bins, see :func:`spacing`."""
        return spacing(self.centres)

    @cached_property
    def diameter(self) -> float:
        """Diameter in bins of a disc with the typical area of a footprint."""
        return float(2 * np.sqrt(np.median(self.area) / np.pi))

    @cached_property
    def coverage(self) -> np.ndarray:
        """Share of each bin that is under a footprint, ``(ny, nx)``."""
        return np.asarray(self.matrix.sum(0)).reshape(self.shape)

    def subset(self, rows: np.ndarray) -> Measurement:
        """The same grid with only the given observations (index or mask)."""
        return Measurement(self.matrix[rows], self.shape, self.centres[rows])

    def moved(self, offsets: np.ndarray) -> Measurement:
        """Move every footprint, with linear interpolation of its shape; parts beyond the grid are lost.

        Parameters
        ----------
        offsets
            ``(spots, 2)`` as (y, x), in bins.
        """
        entries = self.matrix.tocoo()
        whole = np.floor(offsets).astype(int)
        part = offsets - whole
        y, x = np.divmod(entries.col, self.shape[1])
        rows, columns, values = [], [], []
        for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
            share = np.abs(1 - dy - part[:, 0]) * np.abs(1 - dx - part[:, 1])
            to_y, to_x = y + (whole[:, 0] + dy)[entries.row], x + (whole[:, 1] + dx)[entries.row]
            on = (to_y >= 0) & (to_y < self.shape[0]) & (to_x >= 0) & (to_x < self.shape[1])
            rows.append(entries.row[on])
            columns.append((to_y * self.shape[1] + to_x)[on])
            values.append((entries.data * share[entries.row])[on])
        places = np.concatenate(rows), np.concatenate(columns)
        matrix = sparse.csr_matrix((np.concatenate(values), places), self.matrix.shape)
        matrix.eliminate_zeros()
        return Measurement(matrix, self.shape, self.centres + offsets)

    def cropped(self, box: tuple[slice, slice]) -> Measurement:
        """The same observations on a part of the grid; parts of footprints outside the box are lost."""
        rows, columns = (np.arange(side)[part] for side, part in zip(self.shape, box, strict=True))
        bins = (rows[:, None] * self.shape[1] + columns).ravel()
        return Measurement(self.matrix[:, bins], (len(rows), len(columns)), self.centres - [rows[0], columns[0]])


def spacing(centres: np.ndarray) -> float:
    """Median distance to the nearest neighbour, in the unit of ``centres``; 1.0 for a single point."""
    if len(centres) < 2:
        return 1.0
    return float(np.median(cKDTree(centres).query(centres, 2)[0][:, 1]))


def _quadrant_area(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    """Area of the part of a disc of radius ``r`` at the origin that is left of ``x`` and below ``y``."""
    x, y = np.clip(x, -r, r), np.clip(y, -r, r)

    def primitive(t: np.ndarray) -> np.ndarray:  # antiderivative of sqrt(r² - t²)
        return 0.5 * (t * np.sqrt(np.maximum(r * r - t * t, 0)) + r * r * np.arcsin(np.clip(t / r, -1, 1)))

    # The column at t holds min(y, s) + s of the disc where s = sqrt(r² - t²), nothing where y < -s.
    chord = np.sqrt(np.maximum(r * r - y * y, 0))  # |t| below which the line y cuts the disc
    inner = np.clip(x, -chord, chord)
    cut = y * (inner + chord) + primitive(inner) - primitive(-chord)
    left = primitive(np.minimum(x, -chord)) - primitive(np.full_like(x, -r))
    right = primitive(np.maximum(x, chord)) - primitive(chord)
    return cut + np.where(y > 0, 2 * (left + right), 0)


def _stencil(centres: np.ndarray, reach: float, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Offsets of bin corners from each centre, (spots, m, m) each, and their bins, -1 beyond the grid."""
    m = int(np.ceil(2 * reach)) + 1
    first = np.floor(centres - reach).astype(int)
    iy = first[:, 0, None] + np.arange(m)
    ix = first[:, 1, None] + np.arange(m)
    dy = np.broadcast_to((iy - centres[:, :1])[:, :, None], (len(centres), m, m))
    dx = np.broadcast_to((ix - centres[:, 1:])[:, None, :], (len(centres), m, m))
    on_y, on_x = (iy >= 0) & (iy < shape[0]), (ix >= 0) & (ix < shape[1])
    bins = np.where(on_y[:, :, None] & on_x[:, None, :], iy[:, :, None] * shape[1] + ix[:, None, :], -1)
    return dy, dx, bins


def _assemble(area: np.ndarray, bins: np.ndarray, shape: tuple[int, int], centres: np.ndarray) -> Measurement:
    area = np.where(area > 1e-12, np.minimum(area, 1.0), 0.0)  # remove rounding errors of about 1e-16
    keep = (bins >= 0) & (area > 0)
    rows = np.nonzero(keep)[0]
    matrix = sparse.csr_matrix((area[keep], (rows, bins[keep])), shape=(len(centres), shape[0] * shape[1]))
    return Measurement(matrix, (int(shape[0]), int(shape[1])), centres)


def discs(centres: np.ndarray, diameter: float, shape: tuple[int, int]) -> Measurement:
    """Operator of circular spots (Visium, legacy ST), by the exact area of disc ∩ square.

    Parameters
    ----------
    centres
        ``(spots, 2)`` as (y, x), in bins.
    diameter
        Diameter of a spot, in bins.
    shape
        ``(ny, nx)`` of the grid.
    """
    centres = np.asarray(centres, float).reshape(-1, 2)
    r = float(diameter) / 2
    if not r > 0:
        raise ValueError(f"`diameter` must be positive, but is {diameter}.")
    dy, dx, bins = _stencil(centres, r, shape)
    area = (
        _quadrant_area(dx + 1, dy + 1, r)
        - _quadrant_area(dx, dy + 1, r)
        - _quadrant_area(dx + 1, dy, r)
        + _quadrant_area(dx, dy, r)
    )
    return _assemble(area, bins, shape, centres)


def squares(centres: np.ndarray, edge: float, shape: tuple[int, int], angle: float = 0.0) -> Measurement:
    """Operator of square observations (Visium HD, Stereo-seq bins), by exact area of overlap.

    Parameters
    ----------
    centres
        ``(observations, 2)`` as (y, x), in bins.
    edge
        Edge of an observation, in bins.
    shape
        ``(ny, nx)`` of the grid.
    angle
        Angle of the edges to the x axis, towards y, in radians.
    """
    centres = np.asarray(centres, float).reshape(-1, 2)
    half = float(edge) / 2
    if not half > 0:
        raise ValueError(f"`edge` must be positive, but is {edge}.")
    angle = float(angle) % (np.pi / 2)
    if angle > 0:
        dy, dx, bins = _stencil(centres, half * (np.cos(angle) + np.sin(angle)), shape)
        low, high = (_turned_quadrant_area(dx, dy + step, half, angle) for step in (0, 1))
        low_right, high_right = (_turned_quadrant_area(dx + 1, dy + step, half, angle) for step in (0, 1))
        return _assemble(high_right - high - low_right + low, bins, shape, centres)
    dy, dx, bins = _stencil(centres, half, shape)
    tall = np.clip(np.minimum(dy + 1, half) - np.maximum(dy, -half), 0, None)
    wide = np.clip(np.minimum(dx + 1, half) - np.maximum(dx, -half), 0, None)
    return _assemble(tall * wide, bins, shape, centres)


def _turned_quadrant_area(x: np.ndarray, y: np.ndarray, half: float, angle: float) -> np.ndarray:
    """Area of the part of a square around the origin that is left of ``x`` and below ``y``.

    The square is rotated by ``angle`` in (0, π/2). The column at t has ``top - bottom`` of the square, minus the part
    above ``y``.
    """
    cos, sin = half * np.cos(angle), half * np.sin(angle)
    left, right = (-cos - sin, cos - sin), (cos + sin, sin - cos)
    top, bottom = (left, (cos - sin, cos + sin), right), (left, (sin - cos, -cos - sin), right)

    def above(outline: tuple[tuple[float, float], ...], level: np.ndarray) -> np.ndarray:
        area = np.zeros(np.broadcast_shapes(x.shape, level.shape))
        for (x0, y0), (x1, y1) in pairwise(outline):
            slope = (y1 - y0) / (x1 - x0)
            from_, to = np.maximum(y0 - level, 0), np.maximum(y0 + slope * (np.clip(x, x0, x1) - x0) - level, 0)
            area += (to - from_) * (to + from_) / (2 * slope)
        return area

    lowest, level = np.asarray(-cos - sin), np.maximum(y, -cos - sin)
    return above(top, lowest) - above(bottom, lowest) - above(top, level) + above(bottom, level)


def _flat(values: np.ndarray, measurement: Measurement) -> np.ndarray:
    if values.shape[-2:] != measurement.shape:
        raise ValueError(f"`values` need the grid's shape {measurement.shape}, but have {values.shape[-2:]}.")
    return values.reshape(-1, measurement.matrix.shape[1])


def degrade(hr: np.ndarray, measurement: Measurement) -> np.ndarray:
    """Expected counts of the observations: ``A @ hr``, ``(g, ny, nx)`` expected counts per bin to ``(spots, g)``."""
    maps, matrix = _flat(hr, measurement), measurement.matrix
    out = np.empty((len(measurement), len(maps)), np.result_type(matrix, maps))
    for column, one in enumerate(maps):  # a single product with all maps would first copy and transpose them
        out[:, column] = matrix @ one
    return out


def pool(values: np.ndarray, measurement: Measurement) -> np.ndarray:
    """Average ``(c, ny, nx)`` maps over each footprint, to ``(spots, c)`` in the same unit: ``A`` with row sums one."""
    return degrade(values, measurement) / np.maximum(measurement.area, 1e-12)[:, None]


def residual(hr: np.ndarray, counts: np.ndarray, measurement: Measurement) -> np.ndarray:
    """Relative misfit ``|A hr - counts| / max(counts, 1)`` per observation and gene, ``(spots, g)``."""
    return np.abs(degrade(hr, measurement) - counts) / np.maximum(counts, 1.0)
