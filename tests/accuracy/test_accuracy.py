"""Accuracy on two phantoms and four real sections has not fallen."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from hadmst_sc.datasets import available

sys.path.insert(0, str(Path(__file__).parent))
import gate

EXPECTED = tomllib.loads(gate.FILE.read_text())


def test_every_case_has_its_numbers():
    assert EXPECTED.keys() == gate.CASES.keys()


@pytest.mark.parametrize("name", gate.CASES)
def test_accuracy_has_not_fallen(name):
    if not name.startswith("phantom"):
        try:
            available()
        except FileNotFoundError:
            pytest.skip("the real sections are not here: set HADMST_DATA to their folder")
    found, known = gate.measured(name), EXPECTED[name]
    assert found["pcc"] >= known["pcc"] - known["pcc_tolerance"], f"PCC fell from {known['pcc']} to {found['pcc']:.4f}"
    most = known["deviance"] + known["deviance_tolerance"]
    assert found["deviance"] <= most, f"deviance rose from {known['deviance']} to {found['deviance']:.4f}"


def test_the_gate_closes_when_the_estimate_gets_worse(monkeypatch):
    """An estimate that lies beside its place must not pass, even if it is only one bin."""
    from dataclasses import replace

    from hadmst_sc import tl

    predict = tl.predict

    def worse(obs, **options):
        found = predict(obs, **options)
        return replace(found, mean=np.roll(found.mean, 1, 2) * found.inside)

    name = "phantom, layers"
    monkeypatch.setattr(tl, "predict", worse)
    found, known = gate.measured(name), EXPECTED[name]
    passes = (
        found["pcc"] >= known["pcc"] - known["pcc_tolerance"]
        and found["deviance"] <= known["deviance"] + known["deviance_tolerance"]
    )
    assert not passes
