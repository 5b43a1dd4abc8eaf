"""Every method behind one signature, ``Observation -> Prediction``: baselines, published tools, and ours.

Nobody has a private path: a method is given the observation, and what it returns is scored by the same code.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import baselines
import numpy as np
import peers

from hadmst_sc.section.observation import Observation, Prediction

Method = Callable[[Observation], Prediction]
OURS, CLOSED_FORM, DRAW = "ours", "ours, closed form", "ours, one draw"
# What each switch of ours passes on to `tl.predict`, and what it does to the section first.
SWITCHES: dict[str, tuple[dict[str, Any], Callable[[Observation], Observation]]] = {
    OURS: ({}, lambda obs: obs),
    CLOSED_FORM: ({"model": None}, lambda obs: obs),
    "ours, metagenes": ({"n_metagenes": 16}, lambda obs: obs),
    "ours, no gate": ({"gate": False}, lambda obs: obs),
    "ours, no alignment": ({"align": False}, lambda obs: obs),
    "ours, hard consistency": ({"consistency": "hard"}, lambda obs: obs),
    "ours, no consistency": ({"consistency": "off"}, lambda obs: obs),
    "ours, no H&E": ({}, baselines.without_he),
    "ours, H&E upside down": ({}, baselines.shuffled_he),
}


def from_maps(maps: baselines.Maps) -> Method:
    """A method from a function that returns maps."""

    def method(obs: Observation) -> Prediction:
        return Prediction(obs.grid, obs.genes, maps(obs), None, obs.inside, obs.measurement.coverage)

    return method


def ours(obs: Observation, *, change: Callable[[Observation], Observation], options: dict[str, Any]) -> Prediction:
    """The estimate of ours; ``change`` is done to the section first."""
    from hadmst_sc import tl

    return tl.predict(change(obs), n_samples=0, **options)


def one_draw(obs: Observation, *, model: str, align: bool | str) -> np.ndarray:
    """The first draw. No estimate: it has the texture and the co-expression that a mean has not."""
    from hadmst_sc import tl

    drawn = tl.predict(obs, model=model, n_samples=2, n_steps=1, keep_draws=True, align=align, gate=False).draws
    assert drawn is not None
    return drawn[0]


def methods(weights: str = "default", align: bool | str = True) -> dict[str, Method]:
    """All methods by name; ``weights`` (a bundled name or a path) and ``align`` of ``tl.predict`` are for ours."""
    found = {name: from_maps(maps) for name, maps in baselines.METHODS.items()}
    found |= {name: from_maps(partial(peers.run, peer)) for name, peer in peers.PEERS.items()}
    for name, (options, change) in SWITCHES.items():
        found[name] = partial(ours, change=change, options={"model": weights, "align": align} | options)
    found[DRAW] = from_maps(partial(one_draw, model=weights, align=align))
    return found
