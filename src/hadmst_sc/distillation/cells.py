"""Cells as evidence of where expression lies.

Their density is a feature of the regressions, at the scale of spots. Within a spot it says where the counts of the spot
lie: the estimate is multiplied by ``1 + strength * (density / local mean - 1)``. A fixed strength would do harm where
cells were found badly, or where RNA lies around large cells rather than in them, so the spots decide: a spot that holds
more cells than the ring around it should hold more counts. If they show nothing of the kind, cells are not used at all.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage, sparse

from hadmst_sc.distillation.genes import Distilled
from hadmst_sc.section.cells import Cells
from hadmst_sc.section.measurement import Measurement, pool
from hadmst_sc.section.observation import Observation

# Tuned on Xenium of breast and mouse brain with cells found well, badly and hardly at all, and on nuclei found in a
# nuclear stain, on MERFISH of the hippocampus and Xenium of breast.
LOCAL_UM = 30.0  # standard deviation of the local mean
SPARSE = 0.3  # of the mean density: where the local mean is below, it counts as this, so that no speck takes a bin
FACTOR = 0.02  # least factor of a bin: no bin is declared empty
RING = 0.27  # distance of the spot from the ring around it, in diameters of a spot; nearer, little differs
N_RING = 6
PRIOR, PRIOR_SPREAD = 0.3, 0.3  # strength before the spots are asked, and its standard deviation
# Cells that were found badly still gather where tissue is dense. That looks like a small strength, and is none in bins.
ANYWHERE, OF_MEASURED = 0.12, 1.8
WIDTHS_UM = (0.0, 12.0, 25.0)  # standard deviations at which the density is a feature


class Strength(NamedTuple):
    """Extent to which expression follows the cells: 0 not at all, 1 entirely."""

    used: float
    measured: float  # by the spots alone
    error: float  # standard error of that


class Support(NamedTuple):
    """Density of cells and what follows from it, as maps ``(ny, nx)`` on a grid whose tissue is ``inside``."""

    density: np.ndarray  # share of each bin that cells cover, or their number
    local: np.ndarray  # mean around the bin
    unit: np.ndarray  # the same, or a share of the mean over the tissue where that is larger
    inside: np.ndarray

    @classmethod
    def of(cls, cells: Cells, inside: np.ndarray, bin_um: float) -> Support:
        """Density and local mean of cells on a grid."""
        density = cells.density.reshape(inside.shape)
        local = _smooth(density, inside, LOCAL_UM / bin_um)
        return cls(density, local, np.maximum(local, SPARSE * max(float(density[inside].mean()), 1e-12)), inside)

    @property
    def relative(self) -> np.ndarray:
        """Density over local mean; nearer to 1 where cells are sparse, 1 outside the tissue."""
        return np.where(self.inside, 1 + (self.density - self.local) / self.unit, 1.0)

    def features(self, bin_um: float) -> np.ndarray:
        """Density at several scales, ``(len(WIDTHS_UM), ny, nx)`` float32."""
        smooth = [_smooth(self.density, self.inside, width / bin_um) for width in WIDTHS_UM]
        return np.stack(smooth).astype(np.float32)

    def factor(self, strength: float) -> np.ndarray:
        """Factor of the estimate in each bin, float32."""
        return np.maximum(1 + strength * (self.relative - 1), FACTOR).astype(np.float32)

    def shares(self, cells: Cells, strength: float) -> sparse.csr_array:
        """Share of the counts of each bin that belongs to each cell, ``(cells, bins)``; the rest lies between cells.

        Counts that follow the cells are divided by their density, all others by area.
        """
        by_density = strength / self.unit
        between = 1 - strength * self.local / self.unit
        by_area = between / np.maximum(self.density, 1) if cells.areal else 0.0
        of_bin = np.where(self.inside, (by_density + by_area) / self.factor(strength), 0.0).ravel()
        return (cells.overlap @ sparse.diags_array(of_bin)).tocsr()


def strength(relative: np.ndarray, obs: Observation, distilled: Distilled) -> Strength:
    """Learn from the spots how far expression follows the cells.

    Counts are regressed on the relative density in each spot, with held-out predictions as offset. Only its difference
    to the density in a ring around the spot counts as evidence (it is the instrument of the regression): where cells
    are dense over a longer distance they are often small.

    Parameters
    ----------
    relative
        ``(ny, nx)`` of :class:`Support`.
    obs
        The section.
    distilled
        Components of the section that do not know the cells.
    """
    measurement = obs.measurement
    here = pool(relative[None], measurement)[:, 0]
    contrast = here - _in_ring(relative, measurement)
    contrast -= contrast.mean()
    score, information = np.zeros(len(contrast)), np.zeros(len(contrast))
    for genes in distilled.panel.blocks():
        expected = distilled.held_out(genes)
        weight = 1 / (1 + expected / distilled.shape[genes])  # variance of a count over its mean is the inverse
        score += (weight * (obs.counts[:, genes] - expected)).sum(1) * contrast
        information += (weight * expected).sum(1) * contrast * (here - here.mean())
    total = float(information.sum())
    if total < 1e-9:
        return Strength(PRIOR, 0.0, np.inf)
    measured = float(score.sum()) / total
    error = float(np.sqrt(((score - measured * information) ** 2).sum())) / total
    trust = PRIOR_SPREAD**2 / (PRIOR_SPREAD**2 + error**2)
    in_bins = OF_MEASURED * (measured - ANYWHERE)
    return Strength(float(np.clip(PRIOR + trust * (in_bins - PRIOR), 0.0, 1.0)), measured, error)


def _smooth(density: np.ndarray, inside: np.ndarray, sigma: float) -> np.ndarray:
    """Mean of the density around each bin in tissue, weighted by a Gaussian; 0 outside."""
    weight = inside.astype(float)
    if not sigma:
        return density * weight
    around = ndimage.gaussian_filter(density * weight, sigma) / np.maximum(ndimage.gaussian_filter(weight, sigma), 1e-6)
    return np.asarray(around * weight)


def _in_ring(relative: np.ndarray, measurement: Measurement) -> np.ndarray:
    """Mean relative density in footprints moved by ``RING`` diameters in several directions, ``(spots,)``."""
    radius = RING * measurement.diameter
    angles = 2 * np.pi * np.arange(N_RING) / N_RING
    moved = [
        ndimage.shift(relative, radius * np.array([np.sin(a), np.cos(a)]), order=1, mode="nearest") for a in angles
    ]
    return pool(np.mean(moved, 0)[None], measurement)[:, 0]
