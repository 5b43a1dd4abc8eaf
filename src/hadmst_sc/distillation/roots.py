"""From the expected square root of a count back to its expectation.

Components are means of square roots of counts, and the square of a mean root is no rate. The mean root of Poisson
counts lies below the root of their mean, and for a rare gene near the mean itself: squares exaggerate its contrasts.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import special

STEP = 1 / 256  # between the roots of the table; linear in between, exact to 1e-6 + 1e-4 of the rate
BLOCK = 2**14
LAST = 10.0  # above this root, the square and 1/4 is exact to 1e-5 of itself


def rates_of_roots(roots: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Rates at which Poisson counts have the given mean square roots.

    Parameters
    ----------
    roots
        Mean square roots of counts over the square root of ``depth``; negative ones count as 0.
    depth
        Expected counts at a rate of one, of a shape that broadcasts.

    Returns
    -------
    Array of the shape and precision of ``roots``.
    """
    kind = roots.dtype.type
    table = _table().astype(kind)
    slope = np.diff(table)
    scale = np.sqrt(depth / STEP**2).astype(kind)
    place = np.ascontiguousarray(np.maximum(roots, kind(0)) * scale)
    rates = np.empty(place.shape, kind)
    places, out = place.reshape(-1), rates.reshape(-1)
    for start in range(0, out.size, BLOCK):  # in blocks that stay in the processor's cache
        here, some = slice(start, start + BLOCK), places[start : start + BLOCK]
        below = np.minimum(some, kind(len(slope) - 1)).astype(np.intp)
        out[here] = table.take(below) + (some - below) * slope.take(below)
        if some.max() > len(slope):
            out[here] = np.where(some > len(slope), (some * kind(STEP)) ** 2 + kind(0.25), out[here])
    rates /= np.asarray(depth, kind)
    return rates


@lru_cache(maxsize=1)
def _table() -> np.ndarray:
    """Mean of Poisson counts whose mean root is 0, ``STEP``, ... ``LAST``."""
    root = np.arange(0, LAST + STEP / 2, STEP)
    counts = np.arange(1, 260)
    mean = np.linspace(0, LAST + 1, 20_001)[:, None] ** 2
    mean_root = np.exp(special.xlogy(counts, mean) - mean - special.gammaln(counts + 1)) @ np.sqrt(counts)
    return np.interp(root, mean_root, mean[:, 0])
