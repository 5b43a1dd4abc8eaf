"""Parts are switched off and on again, and the page follows from the record alone."""

from __future__ import annotations

import numpy as np
import pytest

from hadmst_sc.phantom.simulate import simulate


@pytest.fixture(scope="module")
def phantom():
    return simulate(965_000, size_um=800.0, n_genes=3)


def test_every_part_changes_the_result_and_is_put_back(phantom):
    from ablations import PARTS, Part, scores

    full = {
        about: scores(phantom.observation, phantom.rate, Part("full", about=about), "default")
        for about in ("mean", "draws")
    }
    for part in PARTS:
        found = scores(phantom.observation, phantom.rate, part, "default")
        assert found.keys() == full[part.about].keys()
        same = part.name.split(",")[0] in (
            "no registration",
            "no gate",
        )  # here nothing is moved, and the network trusted
        assert same or found != full[part.about], part.name
    assert scores(phantom.observation, phantom.rate, Part("full"), "default") == full["mean"]


def test_page_marks_what_is_beyond_two_standard_errors():
    from ablations import render

    rows = [
        {"set": "s", "part": part, "about": "mean", "full": {"pcc": 0.5}, "without": {"pcc": 0.5 + change}}
        for part, changes in {"clear": (-0.1, -0.11, -0.09), "noise": (-0.1, 0.1, 0.01)}.items()
        for change in changes
    ]
    made = {
        "command": "c",
        "commit": "0" * 12,
        "uncommitted_changes": False,
        "machine": "m",
        "threads": "1",
        "versions": {},
    }
    page = render({"provenance": made, "settings": {"n_seeds": 3}, "results": rows})
    error = np.std([-0.1, -0.11, -0.09], ddof=1) / np.sqrt(3)
    assert f"**-0.1000 ± {error:.4f}**" in page
    assert "**+0.0033" not in page and "+0.0033" in page
