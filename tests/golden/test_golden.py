"""Numbers of every step of a run, as they were committed: a change of structure must not move them."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

from hadmst_sc.datasets.public import available

GOLDEN = runpy.run_path(str(Path(__file__).with_name("golden.py")))
# Relative, on any machine: those of Intel and AMD differ by up to 1.2e-3. On one machine it is 1e-6, which
# `golden.py --check` demands.
TOLERANCE = 3e-3
EXPECTED = dict(np.load(GOLDEN["FILE"]))
SECTIONS = ("phantom", pytest.param(GOLDEN["REAL"], marks=pytest.mark.real))


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS)
def test_every_step_gives_the_numbers_that_were_committed(section):
    if section != "phantom" and section not in available():
        pytest.skip("the folder of real sections is not there: set HADMST_DATA")
    found = GOLDEN["computed"](section)
    expected = {name: values for name, values in EXPECTED.items() if name.startswith(section)}
    assert found.keys() == expected.keys()
    differences = {name: GOLDEN["difference"](found[name], values) for name, values in expected.items()}
    assert max(differences.values()) < TOLERANCE, sorted(differences.items(), key=lambda item: -item[1])[:5]


@pytest.mark.parametrize("name", [name for name in EXPECTED if name.endswith(("features", "context", "token"))])
def test_no_two_maps_are_so_alike_that_a_swap_would_pass(name):
    values = EXPECTED[name].T if name.endswith("token") else EXPECTED[name]
    # The bin size and the pitch of a token are one number for all genes, but two numbers.
    for i, one in enumerate(values):
        for other in values[i + 1 :]:
            assert np.abs(one - other).max() > 2 * TOLERANCE * np.abs(values).max()
