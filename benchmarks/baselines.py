"""Simple methods behind one signature, to stand beside ours in every table.

``method(obs) -> (genes, ny, nx)`` float32: expected counts per bin, zero outside the tissue.

Regressions come in two links. On rates they estimate the mean; on log1p of counts they resist the few spots with very
many counts, which is what a score on log1p of counts rewards. Neither wins everywhere, so both are in the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from regression import FLOOR, Fit, Section, additive, in_log, kriging, ridge, ridge_and_kriging, soft
from scipy.interpolate import CloughTocher2DInterpolator, LinearNDInterpolator
from scipy.spatial import cKDTree

from hadmst_sc.contract import Observation

Method = Callable[[Observation], np.ndarray]


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


def regression(fitter: Callable[[Section], Fit], *, log: bool = False, rule: str = "none") -> Method:
    """A method from a regression, a link, and a rule of consistency: ``"none"``, ``"soft"`` or ``"soft spread"``."""

    def method(obs: Observation) -> np.ndarray:
        section = Section.of(obs)
        found = in_log(section, fitter) if log else fitter(section)
        if rule == "none":
            return section.maps(np.maximum(found.bins, FLOOR))
        return section.maps(soft(section, found, spread=rule == "soft spread"))

    return method


def ours(obs: Observation, *, model: str | None, align: bool | str, gate: bool = True) -> np.ndarray:
    """The network on top of the closed form, or without a model the closed form."""
    from hadmst_sc import tl

    return tl.predict(obs, model=model, n_samples=0, align=align, gate=gate).mean


def one_draw(obs: Observation, *, model: str, align: bool | str) -> np.ndarray:
    """The first draw. No estimate: it has the texture and the co-expression that a mean has not."""
    from hadmst_sc import tl

    drawn = tl.predict(obs, model=model, n_samples=2, n_steps=1, keep_draws=True, align=align, gate=False).draws
    assert drawn is not None
    return drawn[0]


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
}

METHODS: dict[str, Method] = {"zero": zero, "nearest": nearest, "linear": linear, "cubic": cubic}
for _name, _fitter in REGRESSIONS.items():
    for _link in ("", ", log"):
        METHODS[_name + _link] = regression(_fitter, log=bool(_link))
        METHODS[f"{_name}{_link}, soft"] = regression(_fitter, log=bool(_link), rule="soft")
METHODS["ridge on H&E, soft spread"] = regression(ridge, rule="soft spread")
METHODS["ridge on H&E, log, soft spread"] = regression(ridge, log=True, rule="soft spread")
UNGATED, DRAW, UNALIGNED = "ours, no gate", "ours, one draw", "ours, not aligned"


def own(model: str = "default", align: bool | str = True) -> dict[str, Method]:
    """Ours with these weights and this way of aligning."""
    return {
        "ours, closed form": lambda obs: ours(obs, model=None, align=align),
        "ours": lambda obs: ours(obs, model=model, align=align),
        UNGATED: lambda obs: ours(obs, model=model, align=align, gate=False),
        DRAW: lambda obs: one_draw(obs, model=model, align=align),
    }


METHODS |= own()
CONTROLS: dict[str, Callable[[Observation], Observation]] = {
    "ours, no H&E": without_he,
    "ours, H&E upside down": shuffled_he,
}


def methods_with(model: str, align: bool | str = True) -> dict[str, Method]:
    """All methods, ours with these weights and this way of aligning, and the controls."""
    unaligned: dict[str, Method] = {UNALIGNED: lambda obs: ours(obs, model=model, align=False)}
    controls: dict[str, Method] = {
        name: lambda obs, change=change: ours(change(obs), model=model, align=align)
        for name, change in CONTROLS.items()
    }
    return METHODS | own(model, align) | unaligned | controls
