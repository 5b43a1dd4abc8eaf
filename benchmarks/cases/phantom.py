"""Phantoms: the true rate is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import scores

from cases.case import ByScale, Case, of_maps
from hadmst_sc.phantom.simulate import HELD_OUT_STYLES, TRAIN_STYLES, Phantom, simulate
from hadmst_sc.section.observation import Prediction

FIRST_TEST_SEED = 900_000  # training draws its phantoms from seeds below 100,000


def phantom_plan(n_seeds: int, *, first: int = FIRST_TEST_SEED, apart: int = 10_000) -> list[tuple[str, int, str]]:
    """``(set, seed, style)`` of each test phantom: ``n_seeds`` per set from ``first`` on, styles in turn."""
    sets = {"in distribution": TRAIN_STYLES, "held-out styles": HELD_OUT_STYLES}
    return [
        (name, first + apart * number + i, styles[i % len(styles)])
        for number, (name, styles) in enumerate(sets.items())
        for i in range(n_seeds)
    ]


def simulated(seed: int, style: str, **options: Any) -> Phantom:
    """The phantom of a seed."""
    return simulate(seed, style=style, **options)


def phantom(*, seed: int, style: str, **options: Any) -> Case:
    """Maps against the true rate of a phantom, before counting noise."""
    made = simulated(seed, style, **options)
    obs = made.observation
    scale = f"{obs.grid.bin_um:g} µm"

    def score(found: Sequence[Prediction]) -> ByScale:
        return {scale: of_maps(found[0].mean, made.rate, obs.inside, scores.of_rates)}

    truth = Prediction(obs.grid, obs.genes, made.rate, None, obs.inside, obs.measurement.coverage)
    return Case(obs, (obs,), score, made.kinds, {"true rate": lambda: score([truth])})
