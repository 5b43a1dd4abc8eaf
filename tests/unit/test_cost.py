"""The estimate counts the work that will be done, is announced before it starts, and is of the right size."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch

import hadmst_sc as hd
from hadmst_sc.inference import cost as _estimate
from hadmst_sc.inference.cost import KEPT, Cost, cost_of
from hadmst_sc.inference.settings import Settings
from hadmst_sc.models import HadmstModel
from hadmst_sc.phantom.simulate import simulate
from hadmst_sc.section.observation import Observation
from hadmst_sc.trust.gate import MAX_GENES

_superresolve = import_module("hadmst_sc.tl.superresolve")  # the module: the package has the function of that name

HOW = Settings(n_samples=0, gate=False, align=False, device="cpu")


@pytest.fixture(scope="module")
def obs() -> Observation:
    return simulate(920_000, size_um=1200.0, n_genes=6, augment=False, depth=(5.0, 40.0)).observation


@pytest.fixture(scope="module")
def network() -> HadmstModel:
    return hd.models.load_model("default", torch.device("cpu"))


@pytest.fixture
def counted(obs, network, monkeypatch):
    """Evaluations of the network, in units of one gene's."""
    monkeypatch.setattr(_estimate, "seconds_of", lambda *_: 0.0)
    monkeypatch.setattr(_estimate, "_seconds_of_an_evaluation", lambda *_: 1.0)

    def count(observation: Observation = obs, **how) -> float:
        whole = cost_of(observation, replace(HOW, model=network, **how), backed=False)
        one = cost_of(many(obs, 1), replace(HOW, model=network), backed=False)
        return whole.seconds / one.seconds

    return count


def many(obs: Observation, n: int) -> Observation:
    return replace(obs, counts=np.resize(obs.counts, (len(obs.spots), n)), genes=tuple(f"g{i}" for i in range(n)))


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({}, 6),
        ({"n_samples": 1}, 6 * 2),
        ({"n_samples": 4}, 6 * 5),
        ({"n_samples": 4, "n_steps": 8}, 6 * 33),
        ({"gate": True}, 6 + 2 * 6),
    ],
)
def test_evaluations_are_counted(counted, how, expected):
    assert counted(**how) == pytest.approx(expected)


def test_metagenes_cost_the_same_for_any_number_of_genes(obs, counted):
    assert counted(many(obs, 300), n_metagenes=16) == pytest.approx(16 + 48)
    assert counted(many(obs, 900), n_metagenes=16, gate=True) == pytest.approx(64 + 2 * (64 + MAX_GENES))


def test_what_is_counted_is_what_is_done(obs, counted, monkeypatch):
    seen, evaluate = [], HadmstModel.network
    monkeypatch.setattr(
        HadmstModel, "network", lambda self, x, *given: (seen.append(len(x)), evaluate(self, x, *given))[1]
    )
    hd.tl.predict(obs, n_samples=2, align=False)
    assert sum(seen) == pytest.approx(counted(n_samples=2, gate=True))


def test_memory_grows_with_genes_only_where_there_is_no_store(obs, network):
    def memory(n: int, *, backed: bool) -> Cost:
        return cost_of(many(obs, n), replace(HOW, model=network), backed=backed)

    assert memory(400, backed=True).memory < 1.01 * memory(6, backed=True).memory
    assert memory(4000, backed=False).memory > 1.1 * memory(6, backed=False).memory
    assert memory(6, backed=False).disk == 0
    assert memory(400, backed=True).disk == (
        2 * 4 * 400 * (obs.grid.n_bins + obs.inside.sum()) + KEPT * obs.grid.n_bins
    )


def test_seconds_are_of_the_right_size(obs, network):
    """In processor time, which other work on the machine does not change much."""
    cost = cost_of(obs, replace(HOW, model=network, n_samples=8), backed=False)
    started = time.process_time()
    hd.tl.predict(obs, n_samples=8, align=False, gate=False)
    assert 1 / 5 < cost.seconds / (time.process_time() - started) < 5


@pytest.mark.parametrize(
    ("seconds", "text"), [(42.3, "about 42 s"), (119, "about 119 s"), (610, "about 10 min"), (9000, "about 2 h")]
)
def test_it_reads_as_a_person_would_say_it(seconds, text):
    assert str(Cost({"predict": seconds}, 1.84e9, 0)) == f"{text}, 1.8 GB of memory"
    assert str(Cost({"predict": seconds}, 1.84e9, 2.5e9)).endswith(", at most 2.5 GB of disk")


def test_it_is_announced_before_anything_is_done(monkeypatch, caplog, capsys):
    monkeypatch.setattr(_superresolve, "predict", lambda *_, **__: pytest.fail("the work"))
    section = hd.datasets.phantom(seed=1, n_genes=4, size_um=600.0)
    with caplog.at_level(logging.INFO, "hadmst_sc"), pytest.raises(pytest.fail.Exception):
        hd.tl.superresolve(section, "phantom_full_image")
    assert "super-resolving takes about" in caplog.text
    assert "super-resolving takes about" in capsys.readouterr().err
