"""Ours minus another method, with an interval over what a new user would have anew: sections, or parts of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import stats
from scores import TILES

LEVEL = 0.95
LEAST_SECTIONS = 3
# Of a section alone: its tiles then hold four spots, two pitches by two. Smaller tiles share spots, and their errors.
LEAST_SPOTS = 4 * TILES**2


class Difference(NamedTuple):
    """Mean of the sections' mean differences over genes, its interval, and what the interval is over.

    From three sections on it is Student's over sections; else the quantiles over tiles and genes of the section, drawn
    with replacement. Without either, ends are nan. Tiles of few spots share them: that interval is too narrow.
    """

    mean: float
    low: float
    high: float
    n_sections: int
    n_genes: int
    has_few_spots: bool = False

    @property
    def sign(self) -> int:
        """1 or -1 where the interval is on one side of zero, else 0: undecided, as is what has too few spots."""
        return 0 if self.has_few_spots else int(self.low > 0) - int(self.high < 0)

    @property
    def over(self) -> str:
        """Sections, or tiles and genes, over which the interval is; for a table."""
        if np.isnan(self.low):
            return f"no interval: {self.n_sections} of the set's sections done"
        unit = f"{self.n_sections} sections" if self.n_sections >= LEAST_SECTIONS else "tiles"
        unit = "tiles (too few spots)" if self.has_few_spots else unit
        return f"{unit} × {self.n_genes} genes"


def paired(
    first: Mapping[str, np.ndarray],
    second: Mapping[str, np.ndarray],
    resampled: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]] = ({}, {}),
    n_spots: int | None = None,
) -> Difference | None:
    """Interval of ``first - second``.

    Parameters
    ----------
    first, second
        ``(genes,)`` scores by section, the same genes in the same order. Sections that one of them lacks are left out,
        and so are genes where one is infinite.
    resampled
        ``(n,)`` means over genes of resampled sections, by section: the same draws for both.
    n_spots
        Spots of the smallest section; ``None`` = enough.

    Returns
    -------
    ``None`` where they have no section in common.
    """
    means, n_genes = [], 0
    for name in first:
        if name in second:
            with np.errstate(invalid="ignore"):
                difference = first[name] - second[name]
            if len(difference := difference[np.isfinite(difference)]):
                means.append(difference.mean())
                n_genes = max(n_genes, len(difference))
    if not means:
        return None
    mean, n = float(np.mean(means)), len(means)
    if n >= LEAST_SECTIONS:
        half = stats.t.ppf((1 + LEVEL) / 2, n - 1) * np.std(means, ddof=1) / np.sqrt(n)
        return Difference(mean, float(mean - half), float(mean + half), n, n_genes)
    drawn = [resampled[0][name] - resampled[1][name] for name in first if name in resampled[0] and name in resampled[1]]
    if not drawn:
        return Difference(mean, float("nan"), float("nan"), n, n_genes)
    low, high = np.quantile(np.mean(drawn, 0), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(mean, float(low), float(high), n, n_genes, n_spots is not None and n_spots < LEAST_SPOTS)
