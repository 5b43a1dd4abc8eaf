"""Position of cells relative to the H&E: nuclei are where the haematoxylin is dark."""

from __future__ import annotations

import numpy as np
from scipy import fft, ndimage

REACH_UM = 150.0  # longest shift that is looked for
BLUR_UM = 10.0  # smoothing of the density of cells: nuclei are dark beyond their outlines
CLEAR, SURE = 0.1, 0.25  # difference of correlations, and correlation, that are no chance on a hundred bins or more
LEAST_UM = 10.0  # shorter shifts are not reported
FLIPS = {"left to right": (1,), "upside down": (0,), "by half a turn": (0, 1)}


def agreement(density: np.ndarray, haematoxylin: np.ndarray, inside: np.ndarray, bin_um: float) -> np.ndarray:
    """Correlation of cells with haematoxylin for shifts of the cells of up to ``REACH_UM``, ``(2 n + 1, 2 n + 1)``.

    Parameters
    ----------
    density, haematoxylin
        ``(ny, nx)`` share of a bin that is covered by cells, and stain.
    inside
        ``(ny, nx)`` bool, in tissue.
    bin_um
        Edge of a bin.
    """
    n = int(REACH_UM / bin_um)
    weight = inside.astype(float)
    smooth = ndimage.gaussian_filter(density.astype(float), BLUR_UM / bin_um)
    one, two = (np.where(inside, values - values[inside].mean(), 0.0) for values in (smooth, haematoxylin))
    shape = [fft.next_fast_len(side + 2 * n, real=True) for side in inside.shape]

    def moved(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        found = fft.irfft2(np.conj(fft.rfft2(a, shape)) * fft.rfft2(b, shape), shape)
        return np.asarray(np.roll(found, (n, n), (0, 1))[: 2 * n + 1, : 2 * n + 1])

    # Only bins that are in tissue before and after the shift count.
    size = np.sqrt(np.maximum(moved(one**2, weight) * moved(weight, two**2), 1e-12))
    return moved(one, two) / size


def displaced(density: np.ndarray, haematoxylin: np.ndarray, inside: np.ndarray, bin_um: float) -> str | None:
    """Describe cells that do not lie where the H&E is dark, with a remedy; ``None`` if they do.

    Arguments as in :func:`agreement`.
    """
    if not np.ptp(haematoxylin[inside]):
        return None
    found = agreement(density, haematoxylin, inside, bin_um)
    n = len(found) // 2
    here, best = float(found[n, n]), float(found.max())
    for how, axes in FLIPS.items():
        turned = float(agreement(np.flip(density, axes), haematoxylin, inside, bin_um).max())
        if turned > max(best, here, SURE - CLEAR) + CLEAR:
            return (
                f"cells look flipped {how}: their correlation with the haematoxylin is {here:.2f}, and {turned:.2f} "
                f"after a flip. Correct their transformation"
            )
    down, right = np.array(np.unravel_index(found.argmax(), found.shape)) - n
    at_edge = max(abs(down), abs(right)) == n  # it may go on beyond
    down, right = down * bin_um, right * bin_um
    if best > max(here + CLEAR, SURE) and np.hypot(down, right) > LEAST_UM and not at_edge:
        along_y, along_x = "down" if down >= 0 else "up", "right" if right >= 0 else "left"
        way = f"{abs(down):.0f} µm {along_y} and {abs(right):.0f} µm {along_x}"
        return (
            f"cells look displaced: their correlation with the haematoxylin is {here:.2f}, and {best:.2f} if they are "
            f"moved {way}. Correct their transformation"
        )
    if here < CLEAR:
        return f"cells do not lie where the H&E is dark (correlation {here:.2f}). Check that they belong to this image"
    return None
