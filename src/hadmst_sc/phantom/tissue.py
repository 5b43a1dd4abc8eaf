"""Anatomy of a phantom: regions in many styles, voids, tissue outline, patches of infiltrate and necrosis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from hadmst_sc.phantom.fields import LAYOUT_UM, Rng, blobs, random_field, ribbon

Drawn = tuple[np.ndarray, np.ndarray | None]  # regions (n, n) int, voids (n, n) bool


@dataclass(frozen=True, eq=False)
class Layout:
    """Anatomy on a lattice of ``LAYOUT_UM``; every map is ``(n, n)``.

    Parameters
    ----------
    style
        Name of the style that drew the regions.
    regions
        Int, ``0 .. n_regions - 1`` everywhere.
    tissue
        Bool; False in lumens, holes, tears and outside the section.
    fat, infiltrate, necrosis
        Bool patches inside the tissue.
    angle
        Direction of fibres and elongated cells, radians.
    """

    style: str
    regions: np.ndarray
    tissue: np.ndarray
    fat: np.ndarray
    infiltrate: np.ndarray
    necrosis: np.ndarray
    angle: np.ndarray

    @property
    def n_regions(self) -> int:
        """Number of regions."""
        return int(self.regions.max()) + 1


def _steps(rng: Rng, low_um: float, high_um: float) -> float:
    """A log-uniform length, in lattice steps."""
    return float(np.exp(rng.uniform(np.log(low_um), np.log(high_um)))) / LAYOUT_UM


def _nearest(points: np.ndarray, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance to the nearest of ``points`` and its index, each of the shape of ``y``."""
    distance, index = cKDTree(points).query(np.stack([y.ravel(), x.ravel()], 1))
    return distance.reshape(y.shape), index.reshape(y.shape)


def _grf(rng: Rng, y: np.ndarray, x: np.ndarray) -> Drawn:
    n_regions, scale, rough = rng.integers(3, 7), _steps(rng, 50, 220), rng.random() < 0.3
    return np.argmax([random_field(rng, y.shape, scale, rough=rough) for _ in range(n_regions)], 0), None


def _voronoi(rng: Rng, y: np.ndarray, x: np.ndarray) -> Drawn:
    n_regions = rng.integers(3, 7)
    seeds = rng.uniform(0, len(y), (rng.integers(n_regions, 6 * n_regions), 2))
    kinds = rng.permutation(np.arange(len(seeds)) % n_regions)
    return kinds[_nearest(seeds, y, x)[1]], None


def _glands(rng: Rng, y: np.ndarray, x: np.ndarray) -> Drawn:
    stroma = (random_field(rng, y.shape, _steps(rng, 120, 300)) > rng.uniform(-0.5, 0.8)).astype(int)
    gland = random_field(rng, y.shape, _steps(rng, 25, 80))
    edge = rng.uniform(0.2, 0.9)
    lumen = gland > edge + rng.uniform(0.5, 1.0)
    regions = np.where(gland > edge, 2, stroma)
    if rng.random() < 0.4:
        return np.where(lumen, 3, regions), None  # lumen filled with secretion
    return regions, lumen


def _fibres(rng: Rng, y: np.ndarray, x: np.ndarray) -> Drawn:
    angle, aspect = rng.uniform(0, np.pi), rng.uniform(3, 8)
    across = y * np.cos(angle) + x * np.sin(angle)
    along = (x * np.cos(angle) - y * np.sin(angle)) / aspect
    scale = _steps(rng, 25, 80)
    bundles = [
        ndimage.map_coordinates(random_field(rng, y.shape, scale), [across, along], order=1, mode="grid-wrap")
        for _ in range(rng.integers(3, 6))
    ]
    return np.argmax(bundles, 0), None


def _nests(rng: Rng, y: np.ndarray, x: np.ndarray) -> Drawn:
    radius = _steps(rng, 60, 250)
    number = max(2, int(rng.uniform(0.15, 0.5) * y.size / (np.pi * radius**2)))
    seeds = rng.uniform(0, len(y), (number, 2))
    reach, index = _nearest(seeds, y, x)
    nest = reach < (radius * rng.uniform(0.5, 1.4, number))[index]
    stroma = (random_field(rng, y.shape, _steps(rng, 100, 300)) > rng.uniform(0, 1)).astype(int)
    regions = np.where(nest, 2 + (rng.random(number) < 0.35)[index], stroma)
    rim = nest & (ndimage.distance_transform_edt(nest) < _steps(rng, 15, 40))
    regions[rim] = 4 if rng.random() < 0.6 else 2
    return regions, None


def _vessels(rng: Rng, y: np.ndarray, x: np.ndarray) -> Drawn:
    base = np.argmax([random_field(rng, y.shape, _steps(rng, 100, 300)) for _ in range(rng.integers(2, 4))], 0)
    number = max(2, int(y.size * LAYOUT_UM**2 / 1e6 * rng.uniform(2, 12)))
    seeds = rng.uniform(0, len(y), (number, 2))
    lumen = np.array([_steps(rng, 15, 70) for _ in range(number)])
    distance, index = _nearest(seeds, y, x)
    from_lumen = distance - lumen[index]
    n = base.max() + 1
    regions = np.where(from_lumen < _steps(rng, 40, 140), n + 1, base) if rng.random() < 0.6 else base
    regions = np.where(from_lumen < _steps(rng, 12, 35), n, regions)
    return regions, from_lumen < 0


def _follicles(rng: Rng, y: np.ndarray, x: np.ndarray) -> Drawn:
    radius = _steps(rng, 120, 350)
    number = max(2, int(rng.uniform(0.2, 0.6) * y.size / (np.pi * radius**2)))
    seeds = rng.uniform(0, len(y), (number, 2))
    reach, index = _nearest(seeds, y, x)
    size = (radius * rng.uniform(0.6, 1.3, number))[index]
    between = (random_field(rng, y.shape, _steps(rng, 60, 150)) > rng.uniform(0, 1)).astype(int)
    regions = np.where(reach < size, 2, between)
    regions[reach < size * rng.uniform(0.4, 0.7)] = 3
    return regions, None


def _bands(rng: Rng, depth: np.ndarray) -> np.ndarray:
    edges = np.quantile(depth, np.sort(rng.uniform(0, 1, rng.integers(2, 6))))
    return np.digitize(depth, edges)


def _layers(rng: Rng, y: np.ndarray, x: np.ndarray) -> Drawn:
    angle = rng.uniform(0, 2 * np.pi)
    return _bands(rng, y * np.cos(angle) + x * np.sin(angle)), None


def _rings(rng: Rng, y: np.ndarray, x: np.ndarray) -> Drawn:
    y0, x0 = rng.uniform(0, 1, 2) * y.shape
    return _bands(rng, np.hypot(y - y0, x - x0)), None


_STYLES: dict[str, Callable[[Rng, np.ndarray, np.ndarray], Drawn]] = {
    "grf": _grf,
    "voronoi": _voronoi,
    "glands": _glands,
    "fibres": _fibres,
    "nests": _nests,
    "vessels": _vessels,
    "follicles": _follicles,
    "layers": _layers,
    "rings": _rings,
}
HELD_OUT_STYLES = ("layers", "rings")  # never drawn at random, to test on regions unlike those of training
TRAIN_STYLES = tuple(style for style in _STYLES if style not in HELD_OUT_STYLES)


def _outline(rng: Rng, shape: tuple[int, int]) -> np.ndarray:
    """Mask of a section that ends inside the image: an irregular disc, possibly cut by the frame."""
    y, x = np.mgrid[: shape[0], : shape[1]] / max(shape)
    y0, x0 = rng.uniform(0.25, 0.75, 2)
    wobble = 0.06 * random_field(rng, shape, rng.uniform(0.05, 0.15) * max(shape))
    depth = np.hypot((y - y0) * rng.uniform(0.8, 1.25), x - x0) + wobble
    return depth < np.quantile(depth, rng.uniform(0.55, 0.92))


def draw_layout(rng: Rng, n: int, style: str | None, *, augment: bool) -> Layout:
    """Draw the anatomy on ``n`` × ``n`` cells of ``LAYOUT_UM``; ``style=None`` draws one of ``TRAIN_STYLES``.

    Without ``augment`` the section fills the frame and has no holes or patches except the voids of its style.
    """
    drawn = str(rng.choice(TRAIN_STYLES))
    style = style or drawn
    if style not in _STYLES:
        raise ValueError(f"`style` needs one of {tuple(_STYLES)}, but is {style!r}.")
    shape = (n, n)
    warp, scale = _steps(rng, 20, 140), _steps(rng, 60, 250)
    y, x = np.mgrid[:n, :n] + warp * np.stack([random_field(rng, shape, scale) for _ in range(2)])
    regions, voids = _STYLES[style](rng, y, x)
    tissue = np.ones(shape, bool) if voids is None else ~voids
    angle = rng.uniform(0, np.pi) + rng.uniform(0.2, 1.5) * random_field(rng, shape, _steps(rng, 80, 300))
    patches = {name: np.zeros(shape, bool) for name in ("fat", "infiltrate", "necrosis")}
    if augment:
        tissue &= _damage(rng, shape)
        chances = {"fat": 0.15, "infiltrate": 0.4, "necrosis": 0.15}
        for name, chance in chances.items():
            if rng.random() < chance:
                scale = _steps(rng, 30, 120) if name == "infiltrate" else _steps(rng, 80, 250)
                patches[name] = blobs(rng, shape, scale, rng.uniform(0.03, 0.2))
    return Layout(style, regions, tissue, angle=angle, **patches)


def _damage(rng: Rng, shape: tuple[int, int]) -> np.ndarray:
    """Mask of undamaged tissue: outline, holes and tears."""
    whole = np.ones(shape, bool)
    if rng.random() < 0.4:
        whole &= _outline(rng, shape)
    if rng.random() < 0.35:
        whole &= ~blobs(rng, shape, _steps(rng, 30, 200), rng.uniform(0.01, 0.1))
    if rng.random() < 0.12:
        whole &= ribbon(rng, shape, _steps(rng, 15, 50)) > 1
    return whole
