"""The capture array of a phantom: positions, failures, efficiencies and counts of its spots."""

from __future__ import annotations

import numpy as np

from hadmst_sc.phantom.fields import LAYOUT_UM, random_field, sample
from hadmst_sc.section.measurement import Measurement

Rng = np.random.Generator


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
