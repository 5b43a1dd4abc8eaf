"""Ours minus another method, gene by gene, with an interval.

Genes of one section are no independent samples of sections: where there are several sections, those are drawn anew too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

N_DRAWS = 2000
LEVEL = 0.95


class Difference(NamedTuple):
    """Mean difference over genes and sections, its interval, and in how many genes the first was greater."""

    mean: float
    low: float
    high: float
    greater: float  # share of the genes, ties half
    n: int

    @property
    def sign(self) -> int:
        """1 or -1 where the interval is on one side of zero, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def paired(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray], *, seed: int = 0) -> Difference | None:
    """Bootstrap of ``first - second``: sections, where there are several, and genes in each are drawn with replacement.

    Both are ``(genes,)`` scores by section, the same genes in the same order. Sections that one of them lacks are left
    out, and so are genes where one is infinite. ``None`` where they have no section in common.
    """
    differences = []
    for name in first:
        if name in second:
            with np.errstate(invalid="ignore"):
                difference = first[name] - second[name]
            if len(difference := difference[np.isfinite(difference)]):
                differences.append(difference)
    if not differences:
        return None
    rng = np.random.default_rng(seed)
    means = np.stack([d[rng.integers(0, len(d), (N_DRAWS, len(d)))].mean(1) for d in differences], 1)
    sizes = np.array([len(d) for d in differences], float)
    drawn = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), N_DRAWS) * sizes
    values = (means * drawn).sum(1) / drawn.sum(1)
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    every = np.concatenate(differences)
    greater = float((every > 0).mean() + (every == 0).mean() / 2)
    return Difference(float(every.mean()), float(low), float(high), greater, len(every))
