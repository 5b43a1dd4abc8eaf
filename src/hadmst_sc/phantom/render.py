"""H&E of a phantom: optical densities of two stains at 2.5 µm per pixel, then effects of slide and microscope."""

from __future__ import annotations

import numpy as np
from scipy import fft, ndimage
from scipy.spatial import cKDTree

from hadmst_sc.phantom.cells import Cells
from hadmst_sc.phantom.fields import LAYOUT_UM, PX_UM, Rng, blobs, combed, enlarge, random_field, ribbon, sample
from hadmst_sc.phantom.tissue import Layout
from hadmst_sc.section.grid import area_weights

_SCALE = round(LAYOUT_UM / PX_UM)  # pixels per cell of the layout
_HAEMATOXYLIN, _EOSIN = (0.65, 0.70, 0.29), (0.07, 0.99, 0.11)  # Ruifrok & Johnston 2001, optical density of R, G, B


def _add(canvas: np.ndarray, rows: np.ndarray, cols: np.ndarray, values: np.ndarray) -> None:
    """Add stamps to a canvas; parts beyond its border are lost."""
    ny, nx = canvas.shape
    on = (rows >= 0) & (rows < ny) & (cols >= 0) & (cols < nx)
    canvas += np.bincount((rows * nx + cols)[on], values[on], ny * nx).reshape(ny, nx)


def _nuclei(rng: Rng, cells: Cells, angle: np.ndarray, side: int) -> np.ndarray:
    """Haematoxylin of all nuclei, soft-edged ellipses, saturating where they overlap."""
    look, template = cells.look, cells.template_of[cells.type]
    radius = (look.radius_um[template] * cells.size / PX_UM).astype(np.float32)
    stretch = np.sqrt(look.elongation[template]).astype(np.float32)
    aligned = rng.random(len(template)) < 0.7
    angle = np.where(aligned, sample(angle, cells.position_um), rng.uniform(0, np.pi, len(template)))
    dark = look.haematoxylin[template] * cells.vitality * np.exp(0.15 * rng.standard_normal(len(template)))
    canvas = np.zeros((side, side))
    position = cells.position_um / PX_UM
    corner = np.floor(position).astype(int)
    # Group nuclei by size, because stamps of the largest size would waste most of the work on small ones.
    group = np.ceil(radius * stretch + 1.2).astype(int)
    for reach in np.unique(group):
        which = np.flatnonzero(group == reach)
        step = np.arange(-reach, reach + 1)
        for part in np.array_split(which, 1 + len(which) * len(step) ** 2 // 1_000_000):
            offset = (corner[part] + 0.5 - position[part]).astype(np.float32)
            dy, dx = step[:, None] + offset[:, 0, None, None], step + offset[:, 1, None, None]
            sin, cos = (f(angle[part]).astype(np.float32)[:, None, None] for f in (np.sin, np.cos))
            long = (radius * stretch)[part][:, None, None]
            short = (radius / stretch)[part][:, None, None]
            square = ((dy * sin + dx * cos) / long) ** 2 + ((dy * cos - dx * sin) / short) ** 2
            stain = dark[part][:, None, None] / (1 + np.exp(np.minimum(4 * (square - 1), 30)))
            rows = np.broadcast_to(corner[part, :1, None] + step[:, None], stain.shape)
            cols = np.broadcast_to(corner[part, 1:, None] + step, stain.shape)
            _add(canvas, rows, cols, stain)
    return 1.5 * (1 - np.exp(-canvas))


def _cytoplasm(cells: Cells, side: int) -> np.ndarray:
    """Eosin around the nuclei, one Gaussian per template."""
    total = np.zeros((side, side))
    template = cells.template_of[cells.type]
    rows, cols = (cells.position_um / PX_UM).astype(int).T
    for t, (eosin, spread_um) in enumerate(zip(cells.look.eosin, cells.look.spread_um, strict=True)):
        canvas, spread = np.zeros((side, side)), spread_um / PX_UM
        mine = template == t
        _add(canvas, rows[mine], cols[mine], np.full(mine.sum(), 2 * np.pi * spread**2 * eosin * 0.5))
        total += ndimage.gaussian_filter(canvas, spread, truncate=3)
    return total


def _fat(rng: Rng, fat: np.ndarray) -> np.ndarray:
    """Share of stain left in fat: white polygons between thin membranes, ``(side, side)`` in [0, 1]."""
    side = len(fat) * _SCALE
    left = np.ones((side, side), np.float32)
    inside = np.argwhere(enlarge(fat.astype(np.float32), _SCALE) > 0.5)
    if not len(inside):
        return left
    spacing = rng.uniform(40, 90) / PX_UM
    seeds = rng.uniform(-spacing, side + spacing, (int(((side + 2 * spacing) / spacing) ** 2), 2))
    near = cKDTree(seeds).query(inside, k=2)[0]
    left[tuple(inside.T)] = 0.05 + 0.95 * np.exp(-(((near[:, 1] - near[:, 0]) / (8 / PX_UM)) ** 2))
    return left


def _stains(rng: Rng, layout: Layout, cells: Cells, clarity: str) -> tuple[np.ndarray, np.ndarray]:
    """Optical densities of haematoxylin and eosin before the microscope, ``(side, side)`` each."""
    n, side = layout.n_regions, len(layout.regions) * _SCALE
    ground, fibrous = rng.uniform(0.12, 0.6, n), rng.uniform(0, 1, n)
    if clarity == "blank" or rng.random() < 0.25:
        ground[:], fibrous[:] = ground.mean(), fibrous.mean()
    soft = rng.uniform(0.4, 1.2)  # width of region borders, in cells of the layout
    ground_map, fibre_map = (
        enlarge(ndimage.gaussian_filter(values[layout.regions].astype(np.float32), soft), _SCALE)
        for values in (ground, fibrous)
    )
    present = enlarge(ndimage.gaussian_filter(layout.tissue.astype(np.float32), 0.6), _SCALE)
    present = 1 / (1 + np.exp(-12 * (present - 0.5))) * _fat(rng, layout.fat & layout.tissue)
    necrosis = enlarge(ndimage.gaussian_filter(layout.necrosis.astype(np.float32), 2), _SCALE)
    grain = rng.uniform(0.02, 0.12) * random_field(rng, (side, side), rng.uniform(1.5, 4))
    strands = rng.uniform(0.03, 0.2) * combed(rng, enlarge(layout.angle, _SCALE), int(rng.integers(3, 9)))
    eosin = (ground_map + grain + strands * fibre_map + 0.25 * necrosis + _cytoplasm(cells, side)) * present
    haze = 0.08 + 0.03 * random_field(rng, (side, side), 2)
    return np.maximum(_nuclei(rng, cells, layout.angle, side) + haze * present, 0), np.maximum(eosin, 0)


def _sharpness(rng: Rng, image: np.ndarray, side: int) -> np.ndarray:
    """Blur of the optics and, in some images, patches out of focus; ``(side, side, 3)``."""
    image = ndimage.gaussian_filter(image, (*[rng.uniform(0.3, 1.0)] * 2, 0))
    if rng.random() < 0.2:
        where = ndimage.gaussian_filter(blobs(rng, (side, side), side / 8, rng.uniform(0.1, 0.4)).astype(np.float32), 8)
        image += where[..., None] * (ndimage.gaussian_filter(image, (*[rng.uniform(2, 5)] * 2, 0)) - image)
    return image


def _coarsened(image: np.ndarray, step: float) -> np.ndarray:
    """Reduce an image to pixels ``step`` times as large, and restore its size by linear interpolation."""
    side = len(image)
    n = max(2, round(side / step))
    down = area_weights(side, side / n, n)
    at = np.clip((np.arange(side) + 0.5) * n / side - 0.5, 0, n - 1)
    low = np.minimum(at.astype(int), n - 2)
    weight = (at - low).astype(np.float32)
    for _ in range(2):  # rows, then columns
        small = (down @ image.reshape(side, -1)).astype(np.float32)
        image = small[low] * (1 - weight)[:, None] + small[low + 1] * weight[:, None]
        image = image.reshape(side, side, 3).swapaxes(0, 1)
    return image


def _compressed(rng: Rng, image: np.ndarray) -> np.ndarray:
    """Round the cosine coefficients of blocks of 8 × 8 pixels, like JPEG compression of medium quality."""
    side = len(image)
    padded = np.pad(image, ((0, -side % 8), (0, -side % 8), (0, 0)), mode="edge")
    m = len(padded) // 8
    frequency = np.add.outer(np.arange(8), np.arange(8))
    step = (rng.uniform(0.01, 0.06) * (0.3 + 0.35 * frequency)).astype(np.float32)[None, :, None, :, None]
    blocks = fft.dctn(padded.reshape(m, 8, m, 8, 3), axes=(1, 3), norm="ortho")
    restored = fft.idctn(np.round(blocks / step) * step, axes=(1, 3), norm="ortho")
    return restored.reshape(padded.shape)[:side, :side]


def _slide(rng: Rng, stains: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Transmitted light in [0, 1] with this slide's stain colours and strength, folds and uneven staining."""
    side = len(stains[0])
    density = np.zeros((side, side, 3), np.float32)
    for stain, nominal in zip(stains, (_HAEMATOXYLIN, _EOSIN), strict=True):
        colour = np.maximum(nominal + 0.08 * rng.standard_normal(3), 0.02)
        strength = np.exp(rng.uniform(np.log(0.6), np.log(2.2)))
        density += stain.astype(np.float32)[..., None] * (colour / np.linalg.norm(colour) * strength)
    density *= 1 + rng.uniform(0, 0.12) * random_field(rng, (side, side), 80)[..., None]
    if rng.random() < 0.15:
        fold = ribbon(rng, (side, side), rng.uniform(10, 40) / PX_UM)
        density *= 1 + rng.uniform(0.5, 1.2) / (1 + np.exp(8 * (np.minimum(fold, 5) - 1)))[..., None]
    return np.exp(-density)


def _camera(rng: Rng, image: np.ndarray, he_um: float) -> tuple[np.ndarray, float]:
    """Illumination, focus, resolution, colour, noise and compression; returns the image and its true µm per pixel."""
    side = len(image)
    image = _sharpness(rng, image, side)
    seen_um = float(np.exp(rng.uniform(np.log(PX_UM), np.log(12)))) if rng.random() < 0.5 else PX_UM
    if max(seen_um, he_um) > PX_UM * 1.05:
        image = _coarsened(image, max(seen_um, he_um) / PX_UM)
    light = 1 + rng.uniform(0, 0.06) * random_field(rng, (side, side), side / 3)[..., None]
    # In public Visium images the background is grey: 128 of 255 on the mouse brain, 174 on the cortex.
    exposure = rng.uniform(0.88, 1.0) if rng.random() < 0.65 else np.exp(rng.uniform(np.log(0.45), 0))
    image = image * light * exposure * (1 + 0.03 * rng.standard_normal(3))
    if rng.random() < 0.1:  # colour at a lower resolution than lightness
        grey = image.mean(-1, keepdims=True)
        image = grey + ndimage.gaussian_filter(image - grey, (*[rng.uniform(2, 8)] * 2, 0))
    image = np.clip(image, 0, 1) ** rng.uniform(0.8, 1.25)
    image = image + rng.uniform(0, 0.025) * rng.standard_normal(image.shape, dtype=np.float32)
    if rng.random() < 0.4:
        image = _compressed(rng, image)
    return image, max(seen_um, he_um)


def render(
    rng: Rng, layout: Layout, cells: Cells, *, clarity: str, he_um: float, augment: bool
) -> tuple[np.ndarray, float]:
    """H&E image of a section at ``PX_UM`` per pixel.

    Parameters
    ----------
    clarity
        ``"blank"`` gives every region the same ground colour.
    he_um
        Finest resolution of the image, µm per pixel.
    augment
        True for slide and camera of random quality; else nominal stains and perfect optics.

    Returns
    -------
    Image ``(3, side, side)`` uint8, and the µm per pixel that it resolves.
    """
    stains = _stains(rng, layout, cells, clarity)
    if augment:
        image, seen_um = _camera(rng, _slide(rng, stains), he_um)
    else:
        image = np.exp(-(stains[0][..., None] * _HAEMATOXYLIN + stains[1][..., None] * _EOSIN))
        image, seen_um = 0.96 * image, max(PX_UM, he_um)
        if he_um > PX_UM:
            image = _coarsened(image, he_um / PX_UM)
    return np.moveaxis((np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8), -1, 0), seen_um
