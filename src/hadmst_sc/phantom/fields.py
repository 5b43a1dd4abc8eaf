"""Random fields for tissue regions, hidden programmes, textures and artefacts of a phantom."""

from __future__ import annotations

import numpy as np
from scipy import fft

Rng = np.random.Generator
LAYOUT_UM = 10.0  # step of the lattice on which the anatomy is drawn, independent of the bins
PX_UM = 2.5  # pixel of the rendered image; LAYOUT_UM / PX_UM is a whole number


def random_field(rng: Rng, shape: tuple[int, int], scale: float, *, rough: bool = False) -> np.ndarray:
    """Stationary Gaussian field with mean zero and standard deviation one over the window.

    Parameters
    ----------
    shape
        ``(ny, nx)``.
    scale
        Correlation length in lattice steps: white noise smoothed by a Gaussian of this width.
    rough
        True for a Matérn-like spectrum, with detail at all scales as in real tissue.

    Returns
    -------
    ``shape`` float32.
    """
    # The transform is periodic: without a border, opposite edges of the window would be neighbours.
    ny, nx = (fft.next_fast_len(int(side + min(3 * scale, side)), real=True) for side in shape)
    ky, kx = fft.fftfreq(ny)[:, None], fft.rfftfreq(nx)
    k2 = ((2 * np.pi * scale) ** 2 * (ky**2 + kx**2)).astype(np.float32)
    gain = (1 + k2) ** np.float32(-1.25) if rough else np.exp(-k2 / 2)
    noise = fft.rfft2(rng.standard_normal((ny, nx), dtype=np.float32))
    field = fft.irfft2(noise * gain, s=(ny, nx))[: shape[0], : shape[1]]
    return (field - field.mean()) / (field.std() + 1e-6)


def sample(field: np.ndarray, points_um: np.ndarray, step_um: float = LAYOUT_UM) -> np.ndarray:
    """Values of a lattice with step ``step_um`` in the cells that contain the (y, x) points."""
    iy, ix = np.minimum((points_um / step_um).astype(int), np.array(field.shape) - 1).T
    return field[iy, ix]


def enlarge(field: np.ndarray, factor: int) -> np.ndarray:
    """Linear interpolation to ``factor`` times as many cells per axis, edges repeated."""
    for axis in (0, 1):
        n = field.shape[axis]
        at = np.clip((np.arange(n * factor) + 0.5) / factor - 0.5, 0, n - 1)
        low = np.minimum(at.astype(int), max(n - 2, 0))
        weight = (at - low).astype(np.float32)
        weight = weight[:, None] if axis == 0 else weight
        field = np.take(field, low, axis) * (1 - weight) + np.take(field, np.minimum(low + 1, n - 1), axis) * weight
    return field.astype(np.float32)


def combed(rng: Rng, angle: np.ndarray, length: int) -> np.ndarray:
    """Texture of fibres: white noise averaged along the direction field ``angle`` (radians), unit deviation."""
    shape = angle.shape
    noise = rng.standard_normal(shape, dtype=np.float32)
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    dy, dx = np.sin(angle), np.cos(angle)
    total = np.zeros(shape, np.float32)
    for step in range(-length, length + 1):
        iy = (y + step * dy).astype(np.int32) % shape[0]
        ix = (x + step * dx).astype(np.int32) % shape[1]
        total += noise[iy, ix]
    return total / (total.std() + 1e-6)


def blobs(rng: Rng, shape: tuple[int, int], scale: float, share: float) -> np.ndarray:
    """Patches that cover about ``share`` of the window, bool."""
    field = random_field(rng, shape, scale)
    return field > np.quantile(field, 1 - share)


def ribbon(rng: Rng, shape: tuple[int, int], width: float) -> np.ndarray:
    """Distance to a random curved line in units of ``width`` (lattice steps); below one inside folds and tears."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    y0, x0 = rng.uniform(0.15, 0.85, 2) * shape
    angle = rng.uniform(0, np.pi)
    wobble = rng.uniform(0.02, 0.08) * max(shape) * random_field(rng, shape, 0.15 * max(shape))
    return np.abs((y - y0) * np.cos(angle) + (x - x0) * np.sin(angle) + wobble) / width
