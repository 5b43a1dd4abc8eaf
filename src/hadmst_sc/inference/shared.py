"""Data that all chunks of genes of a section share, and the result of a chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hadmst_sc.distillation.genes import Distilled
from hadmst_sc.inference.settings import Settings
from hadmst_sc.section.errors import logger
from hadmst_sc.section.measurement import Measurement
from hadmst_sc.section.observation import Box

if TYPE_CHECKING:
    from hadmst_sc.inference.estimators import Estimator

MIN_WINDOW = 64  # bins
MAX_BINS = 2_000_000  # of the maps of all genes at a time; one of them is 8 MB, and 30 are held at once


def tissue_crop(inside: np.ndarray, align: int) -> Box:
    """Bounding box of the tissue, from multiples of the network's alignment, so that its phase is unchanged."""
    box = []
    for axis in (1, 0):
        where = np.flatnonzero(inside.any(axis))
        box.append(slice(int(where[0]) // align * align, int(where[-1]) + 1))
    return box[0], box[1]


class Maps(NamedTuple):
    """Result of a chunk: mean and standard deviation ``(genes, ny, nx)``, samples ``(n_samples, genes, ny, nx)``."""

    mean: np.ndarray
    std: np.ndarray | None = None
    draws: np.ndarray | None = None


def joined(parts: list[Maps]) -> Maps:
    """Concatenate the maps of several chunks."""
    mean, stds, draws = zip(*parts, strict=True)
    return Maps(
        np.concatenate(mean),
        None if stds[0] is None else np.concatenate(stds),
        None if draws[0] is None else np.concatenate(draws, 1),
    )


@dataclass
class Limits:
    """Limits of the work in memory at once; lowered when memory runs out. Results do not depend on them."""

    window: int  # bins
    genes: int = 2**31

    def lower(self, n: int) -> None:
        """Halve the number of genes, or the window, after ``n`` genes were too many.

        Raises
        ------
        MemoryError
            If there is nothing left to halve.
        """
        if n == 1 and self.window <= MIN_WINDOW:
            raise MemoryError(
                "one gene in the smallest window needs more memory than is available. Pass a larger `bin_um=`, or a "
                "`tissue_key=` that marks a part of the tissue."
            )
        if n > 1:
            self.genes = n // 2
        else:
            self.window = max(MIN_WINDOW, self.window // 2 // 4 * 4)
        logger.warning(
            "out of memory: continuing with %d gene%s at a time and windows of %d bins; the result is the same",
            min(n, self.genes),
            "s" * (min(n, self.genes) > 1),
            self.window,
        )


@dataclass(frozen=True, eq=False)
class SharedSection:
    """Data that the chunks of genes share; small enough to send to a worker. Maps are cropped to the tissue.

    Parameters
    ----------
    distilled
        Priors, tokens and context of all genes, on the whole grid.
    genes
        Names of the genes.
    inside
        ``(ny, nx)`` bool, in tissue.
    crop
        Box of the grid that the maps cover.
    measurement
        Measurement operator of the spots on the crop.
    settings
        Without model and features.
    limits
        Limits of the work in memory at once.
    estimator
        Closed form, network or metagenes.
    share
        Blend of closed form (0) and estimator (1), in the logarithm.
    variance
        ``(genes,)`` variance over expected counts in a bin; ``None`` without standard deviation.
    support
        ``(ny, nx)`` factor of the estimate, from cells; ``None`` without cells.
    """

    distilled: Distilled
    genes: tuple[str, ...]
    inside: np.ndarray
    crop: Box
    measurement: Measurement
    settings: Settings
    limits: Limits
    estimator: Estimator
    share: float = 1.0
    variance: np.ndarray | None = None
    support: np.ndarray | None = None

    @property
    def batch_size(self) -> int:
        """Genes at a time: as many as the settings say, else as the estimator says, fewer on a large section."""
        several = min(self.estimator.max_genes, max(MAX_BINS // self.inside.size, 4))
        return self.settings.batch_size or several
