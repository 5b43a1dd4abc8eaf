"""Hand-crafted H&E features: stain separation, then nuclear and textural maps at several scales, pooled to bins.

All lengths are in µm, so the maps are comparable across image resolutions; scales finer than a pixel are computed at
the finest scale that the pixels support.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from scipy import ndimage

from hadmst_sc.runtime import side_by_side
from hadmst_sc.section.measurement import pool
from hadmst_sc.section.observation import Observation

SCALES_UM = (0.0, 10.0, 25.0, 60.0)
CLIP_SD = 6.0
MAX_EXTRAPOLATION = 3.0  # largest ratio of the spread over bins to that over spots, on which weights are learnt

# Optical densities of haematoxylin and eosin (Ruifrok & Johnston 2001), for images with too few stained pixels.
REFERENCE_STAINS = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105]])


def stain_vectors(density: np.ndarray) -> np.ndarray:
    """Two stain vectors by the angular extremes of the optical-density plane (Macenko et al. 2009).

    Parameters
    ----------
    density
        ``(pixels, 3)`` optical densities, natural log.

    Returns
    -------
    ``(2, 3)``, unit rows: haematoxylin (absorbs more red), eosin.
    """
    stained = density[density.sum(1) > 0.25]
    if len(stained) < 500:
        return REFERENCE_STAINS
    stained = stained[:: max(1, len(stained) // 50_000)]
    _, singular, axes = np.linalg.svd(stained, full_matrices=False)
    if singular[1] < 1e-3 * singular[0]:  # a grey image spans a line, not a plane
        return REFERENCE_STAINS
    plane = axes[:2] * np.array([[np.sign(axes[0].sum())], [1.0]])
    angles = np.arctan2(stained @ plane[1], stained @ plane[0])
    ends = [np.array([np.cos(a), np.sin(a)]) @ plane for a in np.percentile(angles, [2, 98])]
    vectors = np.clip(sorted(ends, key=lambda v: -v[0]), 0, None)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def separate_stains(he: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Haematoxylin and eosin amounts, each scaled so that its 99th percentile in tissue is one.

    Parameters
    ----------
    he
        ``(3, y, x)`` uint8.
    inside
        ``(y, x)`` bool on the same pixels; the stain statistics come from here.

    Returns
    -------
    Two ``(y, x)`` float32 maps.
    """
    density = -np.log((he.reshape(3, -1).T.astype(np.float32) + 1) / 256)
    tissue = inside.ravel() if inside.any() else np.ones(inside.size, bool)
    sample = density[tissue]
    vectors = stain_vectors(sample[:: max(1, len(sample) // 200_000)])
    amounts = density @ np.linalg.pinv(vectors).astype(np.float32)
    top = np.percentile(amounts[tissue][:: max(1, tissue.sum() // 200_000)], 99, axis=0)
    amounts /= np.maximum(top, 1e-3).astype(np.float32)
    return amounts[:, 0].reshape(inside.shape), amounts[:, 1].reshape(inside.shape)


BASE = (
    "haematoxylin",
    "eosin",
    "background",
    "nuclear area",
    "blobs of 3 um",
    "blobs of 5 um",
    "blobs of 9 um",
    "edges",
    "spread of haematoxylin",
    "spread of eosin",
    "fibres",
    "eosin x haematoxylin",
    "eosin squared",
    "smooth eosin x haematoxylin",
)
"""Base maps in their order, which the weights depend on: cards store it."""
N_BASE = len(BASE)

Named = Iterator[tuple[str, np.ndarray]]


def _maps(
    h: np.ndarray, e: np.ndarray, um_per_px: float, to_bins: Callable[[np.ndarray], np.ndarray]
) -> list[np.ndarray]:
    """Base maps in the order of ``BASE``, each pooled to bins immediately: few fit in memory at full resolution."""

    def px(um: float) -> float:
        return max(um / um_per_px, 0.7)

    def smooth(image: np.ndarray, um: float) -> np.ndarray:
        return ndimage.gaussian_filter(image, px(um), mode="nearest")

    def spread(image: np.ndarray, mean: np.ndarray, um: float) -> np.ndarray:
        return np.sqrt(np.maximum(smooth(image * image, um) - mean * mean, 0))

    def stains() -> Named:
        yield "haematoxylin", h
        yield "eosin", e
        yield "background", np.minimum(h, 0.4)  # haematoxylin without nuclei
        yield "nuclear area", (h > 0.5).astype(np.float32)

    def blobs() -> Named:
        yield "blobs of 3 um", -ndimage.gaussian_laplace(h, px(3.0), mode="nearest")
        for name, um in (("blobs of 5 um", 5.0), ("blobs of 9 um", 8.75)):  # sizes of small and large nuclei
            yield name, np.maximum(-ndimage.gaussian_laplace(h, px(um), mode="nearest"), 0)

    def slopes() -> Named:
        gy, gx = np.gradient(smooth(h, 2.5))
        yield "edges", np.hypot(gy, gx)
        jxx, jyy, jxy = (smooth(product, 12.5) for product in (gx * gx, gy * gy, gx * gy))
        yield "fibres", np.sqrt((jxx - jyy) ** 2 + 4 * jxy**2) / (jxx + jyy + 1e-4)  # edges that are parallel

    def neighbourhoods() -> Named:
        h_mean, e_mean = smooth(h, 7.5), smooth(e, 7.5)
        yield "spread of haematoxylin", spread(h, h_mean, 7.5)
        yield "spread of eosin", spread(e, e_mean, 7.5)
        yield "eosin x haematoxylin", e * h
        yield "eosin squared", e * e
        yield "smooth eosin x haematoxylin", e_mean * h_mean

    parts = (slopes, neighbourhoods, blobs, stains)  # slowest first
    by_part = side_by_side(lambda part: {name: to_bins(one) for name, one in part()}, parts)
    by_name = {name: one for maps in by_part for name, one in maps.items()}
    return [by_name[name] for name in BASE]


def he_features(obs: Observation) -> np.ndarray:
    """Stain features of one section on the HR grid.

    Returns
    -------
    ``(len(SCALES_UM) * N_BASE, ny, nx)`` float32: the base maps at each scale in turn, standardised so that the values
    pooled to the spots have mean zero and unit variance, clipped at ±6. Constant maps are zero.
    """
    k, (ny, nx) = obs.he_per_bin, obs.grid.shape
    inside = np.repeat(np.repeat(obs.inside, k, 0), k, 1)
    h, e = separate_stains(obs.he, inside)
    base = _maps(h, e, obs.grid.bin_um / k, lambda one: one.reshape(ny, k, nx, k).mean((1, 3)))

    def smooth(job: tuple[float, np.ndarray]) -> np.ndarray:
        um, one = job
        return ndimage.gaussian_filter(one, um / obs.grid.bin_um, mode="nearest") if um else one

    return standardised(np.stack(side_by_side(smooth, [(um, one) for um in SCALES_UM for one in base])), obs)


def standardised(maps: np.ndarray, obs: Observation) -> np.ndarray:
    """Scale maps so that their spot averages have mean zero and unit variance, clip at ±6; constant maps become zero.

    Parameters
    ----------
    maps
        ``(f, ny, nx)`` float32 on the grid of ``obs``.
    obs
        The section.
    """
    spots = pool(maps, obs.measurement)
    mean, sd = spots.mean(0), spots.std(0)
    # Otherwise texture that averages out within a spot is amplified, and the regression extrapolates in every bin.
    wide = np.maximum(sd, np.array([one[obs.inside].std() for one in maps]) / MAX_EXTRAPOLATION)
    scale = np.where(sd > 1e-5 * (np.abs(mean) + 1e-3), 1 / np.maximum(wide, 1e-12), 0.0)
    out = np.empty(maps.shape, np.float32)
    for i, one in enumerate(maps):  # one at a time, because double precision needs much memory
        out[i] = np.clip((one - mean[i]) * scale[i], -CLIP_SD, CLIP_SD)
    return out
