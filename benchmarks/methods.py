"""Every method behind one signature, ``Observation -> Prediction``: rivals, published tools, ours with its switches.

Nobody has a private path: a method is given the observation, and what it returns is scored by the same code.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import peers
import rivals
from plan import REGISTERED, TRAINED
from sources import find
from switches import SWITCHES, ours

from hadmst_sc.section.observation import Observation, Prediction

Method = Callable[[Observation], Prediction]


def method(name: str, weights: str = "default", align: bool | str = True) -> Method:
    """The method of a name; ``weights`` (a bundled name or a path) and ``align`` of ``tl.predict`` are for ours."""
    if (switch := _switch(name)) in SWITCHES:
        return partial(ours, switch=SWITCHES[switch], model=weights, align=align)
    name = name.removesuffix(REGISTERED)
    maps = partial(peers.run, peers.PEERS[name]) if name in peers.PEERS else rivals.rival(name)

    def predict(obs: Observation) -> Prediction:
        return Prediction(obs.grid, obs.genes, maps(obs), None, obs.inside, obs.measurement.coverage)

    return predict


def source_files(name: str) -> list[Path]:
    """Files whose code makes the maps of a method; what they import is found from there."""
    if _switch(name) in SWITCHES:
        named = ["hadmst_sc.tl.predict", "switches"]
    elif (bare := name.removesuffix(REGISTERED)) in peers.PEERS:
        runner = [peers.HERE / peers.PEERS[bare].runner]
        return [*_files(["peers"]), *(file for file in runner if file.suffix == ".py")]
    else:
        named = sorted(rivals.modules(bare))
    return _files(named)


def recipe(name: str) -> list[str]:
    """Functions that a method is put together from; its files alone do not tell their order."""
    bare = name.removesuffix(REGISTERED)
    return [] if _switch(name) in SWITCHES or bare in peers.PEERS else rivals.recipe(bare)


def _switch(name: str) -> str:
    """Name of a method without the training run whose weights it uses."""
    return name.partition(TRAINED)[0]


def _files(modules: list[str]) -> list[Path]:
    found = [find(module) for module in modules]
    return [path for path in found if path is not None]
