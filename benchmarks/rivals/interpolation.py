"""Methods that know only where the spots lie, and the map that is zero everywhere."""

from __future__ import annotations

import numpy as np
from scipy.interpolate import CloughTocher2DInterpolator, LinearNDInterpolator
from scipy.spatial import cKDTree

from hadmst_sc.section.observation import Observation
from rivals.section import Section


def zero(obs: Observation) -> np.ndarray:
    """Nothing anywhere: what a metric must not reward."""
    return np.zeros((len(obs.genes), *obs.grid.shape), np.float32)


def nearest(obs: Observation) -> np.ndarray:
    """Rate of the nearest spot."""
    section = Section.of(obs)
    return section.maps(_nearest(section))


def linear(obs: Observation) -> np.ndarray:
    """Linear on the Delaunay triangles of the spots; the nearest spot outside their hull."""
    return _interpolate(obs, LinearNDInterpolator)


def cubic(obs: Observation) -> np.ndarray:
    """Clough–Tocher cubic on the same triangles, cut at zero; the nearest spot outside their hull."""
    return _interpolate(obs, CloughTocher2DInterpolator)


def _nearest(section: Section) -> np.ndarray:
    return section.rates[cKDTree(section.spots_um).query(section.bins_um)[1]]


def _interpolate(obs: Observation, interpolator: type) -> np.ndarray:
    section = Section.of(obs)
    rates = interpolator(section.spots_um, section.rates)(section.bins_um)
    return section.maps(np.where(np.isnan(rates), _nearest(section), rates))
