"""One signature for all: an observation goes in, a prediction of the same genes on the same grid comes out."""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

N_GENES = 18  # more than metagenes


@pytest.fixture(scope="module")
def section(make_section):
    def rates(y: np.ndarray, x: np.ndarray) -> list[np.ndarray]:
        return [4 + np.sin(y / 5 + g) if g % 2 else (1 + x / 20) / (1 + g) for g in range(N_GENES)]

    return make_section(rates, noise=True)


@pytest.fixture(scope="module")
def predicted(section):
    """What a method makes of the section, made once; networks are trained a little, and there are fewer trees."""
    from methods import method

    with pytest.MonkeyPatch.context() as patch:
        for module, name, few in (
            ("unet", "STEPS", 12),
            ("trees", "N_TREES", 60),
            ("istar_head", "EPOCHS", 3),
            ("istar_head", "STATES", 2),
        ):
            patch.setattr(import_module(f"rivals.{module}"), name, few)
        yield cache(lambda name: method(name)(section))


def names():
    """All methods of the benchmark, and all switches of ours; without published tools, which need environments."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
    import methods
    import peers
    import plan

    declared = plan.load()
    references = {name for task in declared["tasks"].values() for name in task.get("references", [])}
    cells = [cell.method for profile in plan.PROFILES for cell in plan.cells(declared, profile)]
    bare = [name.removesuffix(methods.REGISTERED) for name in cells if name not in references]
    return [name for name in dict.fromkeys([*methods.SWITCHES, *bare]) if name not in peers.PEERS]


@pytest.mark.parametrize("name", names())
def test_signature(section, predicted, name):
    from hadmst_sc.section.observation import Prediction

    before = section.counts.copy(), section.he.copy(), section.inside.copy()
    found = predicted(name)
    assert isinstance(found, Prediction)
    assert found.genes == section.genes and found.mean.shape == (N_GENES, 40, 40)
    assert np.isfinite(found.mean).all() and found.mean.min() >= 0
    assert (found.mean[:, ~section.inside] == 0).all()
    for was, now in zip(before, (section.counts, section.he, section.inside), strict=True):
        np.testing.assert_array_equal(was, now)


def test_every_sampler_gives_draws_and_ours_does_not(predicted):
    from switches import N_DRAWS, OURS, SAMPLERS

    assert SAMPLERS[0] == OURS and len(SAMPLERS) == 3
    for name in SAMPLERS[1:]:
        draws = predicted(name).draws
        assert draws.shape == (N_DRAWS, N_GENES, 40, 40)
        assert draws.min() >= 0 and draws.std(0).max() > 0
    assert predicted("ours").draws is None


def test_registered_is_the_same_method_and_the_section_is_what_differs(predicted):
    from methods import REGISTERED

    name = "kriging, log, soft"
    np.testing.assert_array_equal(predicted(name).mean, predicted(name + REGISTERED).mean)


def test_every_switch_of_ours_changes_something(predicted):
    from switches import OURS, SAMPLERS, SWITCHES

    ours = predicted(OURS).mean
    switched = [name for name in SWITCHES if name != OURS and name not in SAMPLERS]
    same = [name for name in switched if np.array_equal(predicted(name).mean, ours)]
    assert set(same) <= {"ours, no registration", "ours, no gate"}  # where nothing is misplaced, and the gate is open


def test_switches_are_put_back(section, predicted):
    """A switch changes a model that it has loaded for itself."""
    from methods import method

    before = predicted("ours").mean
    predicted("ours, no student"), predicted("ours, no offsets"), predicted("ours, no metagene context")
    np.testing.assert_array_equal(method("ours")(section).mean, before)


def test_the_controls_hide_and_turn_the_image_and_nothing_else(section):
    from switches import turned_he, without_he

    grey, turned = without_he(section), turned_he(section)
    assert np.ptp(grey.he) == 0
    np.testing.assert_array_equal(turned.he[:, ::-1, ::-1], section.he)
    for one in (grey, turned):
        assert one.counts is section.counts and one.measurement is section.measurement


def test_an_unknown_method_is_refused_and_the_known_are_named():
    from methods import method

    with pytest.raises(KeyError, match=r"no such method.* is no rival. Known: \[.*kriging"):
        method("no such method")
