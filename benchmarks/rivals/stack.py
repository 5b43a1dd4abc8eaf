"""A stack: several regressions, weighted by how well they predict held-out spots."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import nnls

from rivals.section import Fit, Fitter, Section


def stack(members: Sequence[Fitter]) -> Fitter:
    """Weights that are not negative and are the same for all genes, by least squares on log1p of held-out counts."""

    def stacked(section: Section) -> Fit:
        depth = section.mean * np.median(section.area)  # counts per whole footprint, for rates of one
        fits = [member(section) for member in members]
        bins, held_out = (
            np.stack([np.log1p(np.maximum(part, 0) * depth) for part in parts]) for parts in zip(*fits, strict=True)
        )
        truth = np.log1p(section.rates * depth)
        weights, _ = nnls(held_out.reshape(len(fits), -1).T, truth.ravel())
        mixed = [np.expm1(np.tensordot(weights, part, 1)) / np.maximum(depth, 1e-12) for part in (bins, held_out)]
        factor = section.rates.sum(0) / np.maximum(mixed[1].sum(0), 1e-9)  # what the logarithm lost
        return Fit(mixed[0] * factor, mixed[1] * factor)

    return stacked
