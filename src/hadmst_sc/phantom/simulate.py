"""Phantoms: simulated tissue sections with known expression in every bin, as arrays.

Anatomy, cells, H&E and genes are drawn first; spots then sample them. Every part has its own random stream, so changing
one part (such as misregistration or image resolution) leaves the others unchanged. Phantoms are deliberately diverse,
because what is learnt on a narrow prior does not transfer to real tissue.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from hadmst_sc.phantom.cells import CLARITIES, KINDS, Cells, binned, draw_cells, express
from hadmst_sc.phantom.fields import LAYOUT_UM, PX_UM, Rng, random_field, sample
from hadmst_sc.phantom.render import render
from hadmst_sc.phantom.tissue import HELD_OUT_STYLES, TRAIN_STYLES, draw_layout
from hadmst_sc.runtime import usual_errors
from hadmst_sc.section.grid import Grid, area_weights
from hadmst_sc.section.measurement import Measurement, degrade, discs
from hadmst_sc.section.observation import Observation

__all__ = ["HELD_OUT_STYLES", "KINDS", "TRAIN_STYLES", "Phantom", "simulate"]

_SOMA_UM = (3.0, 6.0)  # spread of a cell's molecules beyond the square that it is binned as
_CLARITY_ODDS = (0.12, 0.68, 0.2)  # probabilities of CLARITIES
_DEFORMATION_SCALE_UM = 800.0


@dataclass(frozen=True, eq=False)
class Phantom:
    """A simulated section with its truth.

    Parameters
    ----------
    observation
        The data that a user would have.
    rate
        ``(genes, ny, nx)`` float32, true expected counts per bin as sampled by the spots, including bleed and ambient
        RNA; zero outside ``observation.inside``. ``A @ rate`` are the expected counts before ``efficiency``.
    efficiency
        ``(spots,)`` capture efficiency of each spot relative to the mean.
    kinds
        Kind of the pattern of each gene, from :data:`KINDS`.
    style
        Style of the regions.
    clarity
        Amount of information on expression in the H&E: ``"blank"``, ``"partial"`` or ``"clear"``.
    regions
        ``(ny, nx)`` int, -1 outside the tissue.
    cell_um, cell_type
        ``(cells, 2)`` positions as (y, x) in µm, ``(cells,)`` int.
    visible
        ``(types,)`` bool: True if the type looks different from all others in the H&E.
    misregistration_um
        ``(dy, dx)``: the translation in ``displacement_um``.
    displacement_um
        ``(2, ny, nx)`` float32 as (dy, dx): the image shows at ``p + displacement_um`` what the spots measured at the
        bin centre ``p``. Sum of translation, rotation and deformation.
    array_index
        ``(spots, 2)`` int, row and column on the capture array (columns of a hexagonal array count half pitches).
    """

    observation: Observation
    rate: np.ndarray
    efficiency: np.ndarray
    kinds: tuple[str, ...]
    style: str
    clarity: str
    regions: np.ndarray
    cell_um: np.ndarray
    cell_type: np.ndarray
    visible: np.ndarray
    misregistration_um: tuple[float, float]
    displacement_um: np.ndarray
    array_index: np.ndarray


@usual_errors
def simulate(
    seed: int,
    *,
    size_um: float = 1920.0,
    bin_um: float = 10.0,
    spot_um: float = 55.0,
    pitch_um: float = 100.0,
    he_um: float = 2.5,
    n_genes: int = 64,
    style: str | None = None,
    depth: tuple[float, float] = (0.15, 40.0),
    misregistration_um: float | tuple[float, float] | None = None,
    rotation_deg: float = 0.0,
    deformation_um: float = 0.0,
    augment: bool = True,
) -> Phantom:
    """Simulate one section; the same arguments give the same section.

    Parameters
    ----------
    seed
        Seed of all random streams.
    size_um
        Edge of the square section, a multiple of ``bin_um``.
    bin_um, spot_um, pitch_um
        Edge of a bin; diameter and pitch of the spots. From a pitch of 150 µm the array is square, like legacy ST.
    he_um
        Finest resolution of the image, µm per pixel.
    n_genes
        Number of genes, spread evenly over :data:`KINDS`.
    style
        One of :data:`TRAIN_STYLES` or :data:`HELD_OUT_STYLES`; ``None`` draws one of the first.
    depth
        Range of the mean counts per spot, log-uniform over genes.
    misregistration_um
        ``(dy, dx)``, or a length in a random direction, rounded to whole pixels of 2.5 µm. ``None``: none in half of
        the augmented sections and up to ±20 µm per axis in the others; none without ``augment``.
    rotation_deg
        Rotation of the image about the section's centre, from y towards x.
    deformation_um
        Root mean square length of a smooth random deformation of the image (correlation length 800 µm).
    augment
        Randomise tissue damage, image quality, spot efficiency, bleed, ambient RNA, over-dispersion and missing spots.
        Without it only anatomy, genes and Poisson noise are random.
    """
    _check(size_um, bin_um, n_genes, depth)
    streams = np.random.default_rng(seed).spawn(8)
    for_layout, for_cells, for_image, for_genes, for_array, for_shift, for_counts, for_field = streams
    layout = draw_layout(for_layout, int(np.ceil(size_um / LAYOUT_UM)), style, augment=augment)
    clarity = str(for_cells.choice(CLARITIES, p=_CLARITY_ODDS)) if augment else "partial"
    cells = draw_cells(for_cells, layout, clarity)
    image, seen_um = render(for_image, layout, cells, clarity=clarity, he_um=he_um, augment=augment)
    shift_px = _shift_px(for_shift, misregistration_um, augment=augment)
    bent_um = _bent(for_field, layout.tissue.shape, rotation_deg, deformation_um)
    image = _shifted(image, shift_px) if bent_um is None else _resampled(image, bent_um, shift_px)

    n = round(size_um / bin_um)
    grid = Grid((n, n), float(bin_um), float(np.clip(np.floor(bin_um / max(PX_UM, he_um)), 1, 8)))
    spots_um, index = lattice(for_array, size_um, spot_um, pitch_um, turned=augment)
    measurement = discs(spots_um / bin_um, spot_um / bin_um, grid.shape)
    weights = area_weights(len(layout.tissue), grid.bin_um / LAYOUT_UM, n)
    tissue = (weights @ (weights @ layout.tissue.astype(float)).T).T >= 0.5
    kept = working(for_array, measurement, tissue, index, augment=augment)
    measurement, spots_um, index = measurement.subset(kept), spots_um[kept], index[kept]
    inside = tissue | (measurement.coverage > 0)

    expression, kinds = express(for_genes, cells, layout.tissue.shape, n_genes)
    rate = _rate(for_genes, expression, cells, grid, inside, augment=augment)
    rate *= _depth_factors(for_genes, rate[:, inside], measurement, depth)[:, None, None]
    efficiency = np.ones(len(measurement))
    if augment:
        efficiency = efficiencies(for_counts, spots_um, _crowding(cells, measurement, grid), layout.tissue.shape)
    counts = count(for_counts, degrade(rate, measurement) * efficiency[:, None], augment=augment)
    observation = Observation(
        grid=grid,
        he=_on_grid(image, grid),
        he_um=seen_um,
        measurement=measurement,
        counts=counts,
        genes=tuple(f"{kind}_{g:03d}" for g, kind in enumerate(kinds)),
        spots=tuple(f"spot_{row:03d}_{column:03d}" for row, column in index),
        inside=inside,
    )
    return Phantom(
        observation=observation,
        rate=rate,
        efficiency=efficiency,
        kinds=kinds,
        style=layout.style,
        clarity=clarity,
        regions=np.where(tissue, sample(layout.regions, grid.centres() * bin_um).reshape(grid.shape), -1),
        cell_um=cells.position_um,
        cell_type=cells.type,
        visible=cells.visible,
        misregistration_um=tuple((shift_px * PX_UM).tolist()),
        displacement_um=_displacement(bent_um, shift_px, grid),
        array_index=index,
    )


def _check(size_um: float, bin_um: float, n_genes: int, depth: tuple[float, float]) -> None:
    n = max(1, round(size_um / bin_um))
    if abs(n * bin_um - size_um) > 1e-6 * size_um:
        raise ValueError(
            f"`size_um` needs to be a multiple of `bin_um`={bin_um:g}, but is {size_um:g}. Bins tile the section. "
            f"Pass `size_um={n * bin_um:g}`."
        )
    if n_genes < 1:
        raise ValueError(f"`n_genes` needs to be at least 1, but is {n_genes}.")
    if not 0 < depth[0] <= depth[1]:
        raise ValueError(f"`depth` needs 0 < low <= high counts per spot, but is {depth}. Pass `depth=(0.15, 40)`.")


def _rate(
    rng: Rng, expression: np.ndarray, cells: Cells, grid: Grid, inside: np.ndarray, *, augment: bool
) -> np.ndarray:
    """Relative expected counts per bin from cells, their bleed and ambient RNA; zero outside."""
    bleed_um, ambient = (rng.uniform(0, 12), rng.uniform(0, 0.03)) if augment else (0.0, 0.0)
    blur_um = float(np.hypot(rng.uniform(*_SOMA_UM), bleed_um))
    rate = binned(expression, cells, grid.shape, grid.bin_um, blur_um) * inside
    rate += (ambient * rate[:, inside].mean(1)).astype(np.float32)[:, None, None] * inside
    return rate


def _depth_factors(rng: Rng, rate: np.ndarray, measurement: Measurement, depth: tuple[float, float]) -> np.ndarray:
    """Factor per gene that scales ``rate``, ``(genes, bins inside)``, to its mean counts per spot.

    The mean is over the section, not over the spots, which may miss a sparse gene; its factor would then be huge.
    """
    goal = np.exp(rng.uniform(np.log(depth[0]), np.log(depth[1]), len(rate)))
    return (goal / measurement.area.mean() / np.maximum(rate.mean(1), 1e-12)).astype(np.float32)


def _crowding(cells: Cells, measurement: Measurement, grid: Grid) -> np.ndarray:
    """Number of cells in each spot."""
    y, x = (cells.position_um / grid.bin_um).astype(int).T
    on = (y < grid.shape[0]) & (x < grid.shape[1])
    number = np.bincount(y[on] * grid.shape[1] + x[on], minlength=grid.n_bins)
    return measurement.matrix @ number.astype(float)


def _shift_px(rng: Rng, imposed: float | tuple[float, float] | None, *, augment: bool) -> np.ndarray:
    """Misregistration in whole pixels of the rendered image, (y, x)."""
    shift = rng.uniform(-20, 20, 2) * rng.integers(2) * augment
    angle = rng.uniform(0, 2 * np.pi)
    if imposed is not None:
        direction = np.array([np.sin(angle), np.cos(angle)]) if np.ndim(imposed) == 0 else 1.0
        shift = np.asarray(imposed, float) * direction
    return np.round(shift / PX_UM).astype(int)


def _shifted(image: np.ndarray, shift_px: np.ndarray) -> np.ndarray:
    """Move ``(3, h, w)`` by whole pixels, mirrored at the border."""
    margin = int(np.abs(shift_px).max())
    padded = np.pad(image, ((0, 0), (margin, margin), (margin, margin)), mode="symmetric")
    y0, x0 = margin - shift_px
    return padded[:, y0 : y0 + image.shape[1], x0 : x0 + image.shape[2]]


def _bent(rng: Rng, shape: tuple[int, int], rotation_deg: float, deformation_um: float) -> np.ndarray | None:
    """Displacement ``(2, y, x)`` in µm by rotation and deformation at the layout's cells; ``None`` if there is none."""
    if not (rotation_deg or deformation_um):
        return None
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5 - np.array(shape)[:, None, None] / 2
    sin, cos = np.sin(np.radians(rotation_deg)), np.cos(np.radians(rotation_deg))
    turned = LAYOUT_UM * np.stack([(cos - 1) * y - sin * x, sin * y + (cos - 1) * x])
    field = np.stack([random_field(rng, shape, _DEFORMATION_SCALE_UM / LAYOUT_UM) for _ in range(2)])
    return turned + deformation_um * field / np.sqrt((field**2).sum(0).mean())


def _at(bent_um: np.ndarray, points_um: np.ndarray) -> np.ndarray:
    """Displacement ``(2, ...)`` at points ``(2, ...)``: linear between the layout's cells, constant beyond them."""
    index = points_um / LAYOUT_UM - 0.5
    return np.stack([ndimage.map_coordinates(one, index, order=1, mode="nearest") for one in bent_um])


def _resampled(image: np.ndarray, bent_um: np.ndarray, shift_px: np.ndarray) -> np.ndarray:
    """Move ``(3, h, w)`` by displacement and shift, mirrored at the border."""
    seen = PX_UM * (np.mgrid[: image.shape[1], : image.shape[2]] + 0.5 - shift_px[:, None, None])
    source = seen
    for _ in range(8):  # fixed-point iteration of p = q - d(p); d is smooth, so each round gains about one digit
        source = seen - _at(bent_um, source)
    index = source / PX_UM - 0.5
    planes = [ndimage.map_coordinates(p.astype(np.float32), index, order=1, mode="reflect") for p in image]
    return np.rint(planes).astype(np.uint8)


def _displacement(bent_um: np.ndarray | None, shift_px: np.ndarray, grid: Grid) -> np.ndarray:
    """Displacement of the image at the centres of all bins, ``(2, ny, nx)`` in µm."""
    total = np.repeat(shift_px * PX_UM, grid.n_bins).reshape(2, *grid.shape)
    if bent_um is not None:
        total = total + _at(bent_um, grid.bin_um * grid.centres().T.reshape(2, *grid.shape))
    return total.astype(np.float32)


def _on_grid(image: np.ndarray, grid: Grid) -> np.ndarray:
    """Resample the rendered image to whole pixels per bin of the grid, by exact area averages."""
    side = round(grid.shape[0] * grid.px_per_bin)
    step = grid.um_per_px / PX_UM
    if step == 1:
        return np.ascontiguousarray(image[:, :side, :side])
    weights = area_weights(image.shape[1], step, side)
    planes = [(weights @ (weights @ plane.astype(np.float32)).T).T for plane in image]
    return np.round(planes).astype(np.uint8)


def lattice(
    rng: Rng, size_um: float, spot_um: float, pitch_um: float, *, turned: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Spots that are entirely on the image, with a random origin and, if ``turned``, a random orientation.

    Returns
    -------
    Centres ``(spots, 2)`` as (y, x) in µm, and ``(spots, 2)`` int (row, column) on the array; columns of a hexagonal
    array count half pitches, as Space Ranger's do.
    """
    square = pitch_um >= 150  # legacy ST arrays (200 µm) are square, Visium's (100 µm) hexagonal
    row_um = pitch_um if square else pitch_um * np.sqrt(3) / 2
    reach = int(size_um / row_um) + 2
    row, column = (index.ravel() for index in np.mgrid[-reach : reach + 1, -reach : reach + 1])
    offset = 0 if square else 0.5 * (row % 2)
    points = np.stack([row * row_um, (column + offset) * pitch_um], 1) + rng.uniform(-0.5, 0.5, 2) * pitch_um
    angle = rng.integers(4) * np.pi / 2 + rng.choice([0, 1]) * np.radians(rng.uniform(-5, 5)) if turned else 0.0
    sin, cos = np.sin(angle), np.cos(angle)
    points = points @ np.array([[cos, sin], [-sin, cos]]) + size_um / 2
    whole = ((points >= spot_um / 2) & (points <= size_um - spot_um / 2)).all(1)
    if not whole.any():
        raise ValueError(
            f"`size_um` needs room for a spot of {spot_um:g} µm on a pitch of {pitch_um:g} µm, but is {size_um:g}. "
            f"Pass `size_um={4 * pitch_um:g}` or more."
        )
    index = np.stack([row, column if square else 2 * column + row % 2], 1)[whole]
    # Shift to zero by multiples of two, so that row and column keep equal parity, as on a Visium slide.
    return points[whole], index - 2 * (index.min(0) // 2)


def working(rng: Rng, measurement: Measurement, tissue: np.ndarray, index: np.ndarray, *, augment: bool) -> np.ndarray:
    """Indices of the spots that touch tissue; with ``augment`` without random failures of spots and of array rows."""
    on = measurement.matrix @ tissue.ravel().astype(float) > 0
    lost = np.zeros(len(index), bool)
    if augment and rng.random() < 0.4:
        lost |= rng.random(len(index)) < rng.uniform(0.01, 0.12)
    if augment and rng.random() < 0.15:
        lost |= np.isin(index[:, 0], rng.choice(np.unique(index[:, 0]), rng.integers(1, 3)))
    kept = on & ~lost if (on & ~lost).sum() > on.sum() / 2 else on  # a small array may not lose most of itself
    if not kept.any():
        raise ValueError("`size_um` needs room for tissue under a spot, but no spot touches any. Pass a larger one.")
    return np.flatnonzero(kept)


def efficiencies(rng: Rng, spots_um: np.ndarray, crowding: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Capture efficiency of each spot relative to the mean.

    Log-normal; in some sections with a component that is smooth over space, in some depending on ``crowding``, the
    number of cells in each spot. ``shape`` is that of the layout.
    """
    log = rng.uniform(0, 0.35) * rng.standard_normal(len(spots_um))
    if rng.random() < 0.3:
        field = random_field(rng, shape, float(rng.uniform(150, 600)) / LAYOUT_UM)
        log += rng.uniform(0.05, 0.3) * sample(field, spots_um)
    if rng.random() < 0.3:
        log += rng.uniform(-0.3, 0.3) * (crowding - crowding.mean()) / (crowding.std() + 1e-6)
    efficiency = np.exp(log)
    return efficiency / efficiency.mean()


def count(rng: Rng, mean: np.ndarray, *, augment: bool) -> np.ndarray:
    """Draw counts, float32: Poisson, or with ``augment`` Gamma–Poisson with an over-dispersion of up to 0.05."""
    dispersion = rng.uniform(0, 0.05) if augment else 0.0
    if dispersion > 0.002:
        mean = mean * rng.gamma(1 / dispersion, dispersion, mean.shape)
    return rng.poisson(mean).astype(np.float32)
