"""Simple methods to stand beside ours in every table: ``Observation -> (genes, ny, nx)`` expected counts per bin.

Float32, zero outside the tissue. :mod:`methods` puts them behind the signature that all methods have.

Regressions come in two links. On rates they estimate the mean; on log1p of counts they resist the few spots with very
many counts, which is what a score on log1p of counts rewards. Neither wins everywhere, so both are in the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from learned import gradient_boosting, joint_bilateral, nearest_neighbours, unet_regression
from regression import FLOOR, Fit, Section, additive, in_log, kriging, ridge, ridge_and_kriging, soft
from scipy.interpolate import CloughTocher2DInterpolator, LinearNDInterpolator
from scipy.spatial import cKDTree

from hadmst_sc.section.observation import Observation

Maps = Callable[[Observation], np.ndarray]


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


def regression(fitter: Callable[[Section], Fit], *, log: bool = False, rule: str = "none") -> Maps:
    """A method from a regression, a link, and a rule of consistency: ``"none"``, ``"soft"`` or ``"soft spread"``."""

    def method(obs: Observation) -> np.ndarray:
        section = Section.of(obs)
        found = in_log(section, fitter) if log else fitter(section)
        if rule == "none":
            return section.maps(np.maximum(found.bins, FLOOR))
        return section.maps(soft(section, found, spread=rule == "soft spread"))

    return method


def without_he(obs: Observation) -> Observation:
    """The same section with a grey image."""
    return replace(obs, he=np.full_like(obs.he, 200))


def shuffled_he(obs: Observation) -> Observation:
    """The same section with its image upside down: as much structure, in the wrong place."""
    return replace(obs, he=np.ascontiguousarray(obs.he[:, ::-1, ::-1]))


REGRESSIONS = {
    "kriging": kriging,
    "ridge on H&E": ridge,
    "ridge + kriging": ridge_and_kriging,
    "GP on H&E + space": additive,
    "nearest neighbours": nearest_neighbours,
    "gradient boosting": gradient_boosting,
}
FROM_IMAGE = ("ridge on H&E", "nearest neighbours", "gradient boosting")  # the others have a spatial term already


METHODS: dict[str, Maps] = {"zero": zero, "nearest": nearest, "linear": linear, "cubic": cubic}
for _name, _fitter in REGRESSIONS.items():
    for _link in ("", ", log"):
        METHODS[_name + _link] = regression(_fitter, log=bool(_link))
        METHODS[f"{_name}{_link}, soft"] = regression(_fitter, log=bool(_link), rule="soft")
for _name in FROM_IMAGE:
    for _link in ("", ", log"):
        METHODS[f"{_name}{_link}, soft spread"] = regression(REGRESSIONS[_name], log=bool(_link), rule="soft spread")
METHODS |= {"joint bilateral": joint_bilateral, "U-Net": unet_regression}
