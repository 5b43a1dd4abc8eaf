"""Which bins are tissue: from a mask in the SpatialData object, or from the H&E near the spots."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.ndimage import label
from scipy.spatial import cKDTree
from skimage.draw import polygon
from skimage.filters import threshold_otsu
from spatialdata import SpatialData

from hadmst_sc.grid import Grid
from hadmst_sc.io.problems import Problems, logger
from hadmst_sc.io.resolve import affine, levels, systems
from hadmst_sc.measurement import Measurement

SPECK_UM2 = 100.0**2  # isolated stained areas below this are debris
GAP_UM2 = 70.0**2  # unstained areas below this are gaps between cells, above it lumina
ALIKE = 0.06  # difference in stain between two shades of glass
GLASS = 0.25  # stain of grey glass under a dim lamp; pale tissue has more
FLAT = 0.02  # range of the stain (0..2) below which an image shows nothing


def near_spots(grid: Grid, measurement: Measurement, reach: float) -> np.ndarray:
    """``(ny, nx)`` bool: bins whose centre is within ``reach`` bins of a spot's centre, and every bin under a spot."""
    distance = cKDTree(measurement.centres).query(grid.centres(), distance_upper_bound=reach * (1 + 1e-6))[0]
    return np.isfinite(distance).reshape(grid.shape) | (measurement.coverage > 0)


def detect_tissue(he: np.ndarray, grid: Grid, measurement: Measurement, pitch_um: float) -> np.ndarray:
    """Stained bins within one pitch of a spot, and every bin under a spot.

    An image without contrast leaves the distance to the spots, and says so.

    Parameters
    ----------
    he
        ``(3, ny * k, nx * k)`` uint8.

    Returns
    -------
    ``(ny, nx)`` bool.
    """
    near, under = near_spots(grid, measurement, pitch_um / grid.bin_um), measurement.coverage > 0
    mask = stained_tissue(he, grid, measurement, pitch_um)
    if mask is None:
        logger.warning("the image has no contrast: every bin within %.4g µm of a spot counts as tissue", pitch_um)
        return near
    return (mask & near) | under


def stained_tissue(he: np.ndarray, grid: Grid, measurement: Measurement, pitch_um: float) -> np.ndarray | None:
    """``(ny, nx)`` bool: stained bins, with or without a spot; ``None`` for an image without contrast there."""
    stain, under = _stain(he, grid), measurement.coverage > 0
    around = stain[near_spots(grid, measurement, 2 * pitch_um / grid.bin_um)]
    if np.ptp(around) < FLAT:
        return None
    threshold = _threshold(around, stain[under])
    bin_area = grid.bin_um**2
    mask = _without_small(stain > threshold, SPECK_UM2 / bin_area)
    return ~_without_small(~mask, GAP_UM2 / bin_area)


def _threshold(around: np.ndarray, under: np.ndarray) -> float:
    """Stain that parts glass from tissue, from the bins around the spots and those under them.

    Otsu's threshold parts pale from dark tissue where there is little glass. Most spots lie on tissue, so while it
    leaves more than a tenth of what is under them on glass, the paler part is split again. A part of one shade is not,
    and is glass only if it is bright; otherwise all is tissue, and the threshold ``-inf``.
    """
    pale, threshold = around, -np.inf
    while np.ptp(pale) >= FLAT:
        split = threshold_otsu(pale)
        if pale[pale > split].mean() - pale[pale <= split].mean() < ALIKE:
            break
        pale, threshold = pale[pale <= split], split
        if (under <= threshold).mean() <= 0.1:
            return float(threshold)
    return float(threshold) if pale.mean() < GLASS else -np.inf


def _without_small(mask: np.ndarray, area: float) -> np.ndarray:
    """Connected parts of at least ``area`` bins."""
    parts, _ = label(mask)
    keep = np.bincount(parts.ravel()) >= area
    keep[0] = False
    return keep[parts]


def _stain(he: np.ndarray, grid: Grid) -> np.ndarray:
    """``(ny, nx)`` colour plus darkness per bin: 0 for white glass and black padding, more for stained tissue."""
    ny, nx = grid.shape
    rgb = he.reshape(3, ny, he.shape[1] // ny, nx, he.shape[2] // nx).mean((2, 4)) / 255
    chroma, darkness = np.ptp(rgb, axis=0), 1 - rgb.mean(0)
    return np.where(rgb.max(0) < 0.05, 0.0, chroma + darkness)


def read_mask(
    sdata: SpatialData, key: str, image: Any, coordinate_system: str, grid: Grid, problems: Problems
) -> np.ndarray:
    """Labels or shapes on the grid, by bin centres through the transformations; all ``False`` after a problem."""
    empty = np.zeros(grid.shape, bool)
    if key not in sdata.labels and key not in sdata.shapes:
        problems.missing("tissue_key", key, "sdata.labels or sdata.shapes", [*sdata.labels, *sdata.shapes])
        return empty
    element = sdata[key]
    shared = [name for name in systems(image) if name in systems(element)]
    if not shared:
        problems.add(
            f"`tissue_key={key!r}`: shares no coordinate system with the image, which has {list(systems(image))}."
        )
        return empty
    name = coordinate_system if coordinate_system in shared else shared[0]
    bins_to_own = np.linalg.inv(affine(element, name)) @ affine(image, name) @ np.diag([grid.px_per_bin] * 2 + [1.0])
    mask = _labels(element, bins_to_own, grid) if key in sdata.labels else _shapes(element, bins_to_own, grid)
    if not mask.any():
        problems.add(f"`tissue_key={key!r}`: covers no bin of the image; check its transformation to {name!r}.")
    return mask


def _labels(element: Any, bins_to_own: np.ndarray, grid: Grid) -> np.ndarray:
    values = np.asarray(levels(element)[0].data) > 0
    yx = grid.centres() @ bins_to_own[1::-1, 1::-1].T + bins_to_own[1::-1, 2]
    row, col = np.floor(yx + 1e-9).astype(int).T
    on = (row >= 0) & (col >= 0) & (row < values.shape[0]) & (col < values.shape[1])
    mask = np.zeros(grid.n_bins, bool)
    mask[on] = values[row[on], col[on]]
    return mask.reshape(grid.shape)


def _shapes(element: Any, bins_to_own: np.ndarray, grid: Grid) -> np.ndarray:
    inverse = np.linalg.inv(bins_to_own)
    outlines = element.geometry.buffer(element["radius"]) if "radius" in element else element.geometry
    parts = outlines.affine_transform([*inverse[:2, :2].ravel(), *inverse[:2, 2]]).explode(index_parts=False)
    mask = np.zeros(grid.shape, bool)
    for part in parts:
        one = np.zeros(grid.shape, bool)
        for ring in (part.exterior, *part.interiors):
            x, y = np.asarray(ring.coords)[:, :2].T
            one[polygon(y - 0.5, x - 0.5, grid.shape)] ^= True  # skimage puts centres at whole numbers
        mask |= one
    return mask
