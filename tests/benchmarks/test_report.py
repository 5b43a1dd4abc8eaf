"""The report says what its files say: wins and losses, what is missing, and nothing that was typed."""

from __future__ import annotations

import json

import pytest

MADE = {"commit": "c" * 40, "uncommitted_changes": False, "machine": "toy", "versions": {"python": "3"}}


def result(task, group, section, method, scores, *, point="clean", **more):
    place = {"task": task, "group": group, "section": section, "point": point, "method": method, "settings": "s"}
    cost = {"seconds": 2.0, "memory_mb": 100}
    weights = {"weights": {"default": "a1" * 32}} if method.startswith("ours") else {}
    return place | {"status": "done", "scores": scores, "cost": cost, "made": MADE} | weights | more


def described(task, group, section, point="clean"):
    about = {
        "n_spots": 100,
        "bins": 900,
        "genes": list("abc"),
        "kinds": ["real"] * 3,
        "counts_per_spot": [1.0, 2.0, 3.0],
    }
    return {"task": task, "group": group, "section": section, "point": point, "about": about, "inputs": {}}


@pytest.fixture
def folder(tmp_path):
    """Ours wins the hold-out and loses the simulated spots; one method failed; one disturbance; two domains."""

    def genes(*pcc):
        return {"pcc": list(pcc), "rmse": [1 - p for p in pcc], "deviance": [1 - p for p in pcc]}

    lines = {
        "holdout": [
            described("holdout", "her2st_C2", "her2st_C2"),
            result("holdout", "her2st_C2", "her2st_C2", "ours", {"spots": genes(0.7, 0.8, 0.9)}),
            result("holdout", "her2st_C2", "her2st_C2", "cubic", {"spots": genes(0.5, 0.6, 0.7)}),
            result("holdout", "her2st_C2", "her2st_C2", "TESLA", {"spots": genes(0.4, 0.5, 0.6)}),
            result(
                "holdout", "her2st_C2", "her2st_C2", "kriging", {}, status="failed", reason="ValueError: too | small"
            ),
        ],
        "hr_sim": [
            described("hr_sim", "breast", "breast"),
            result("hr_sim", "breast", "breast", "ours", {"20 µm": genes(0.3, 0.3, 0.3)}),
            result("hr_sim", "breast", "breast", "cubic", {"20 µm": genes(0.4, 0.4, 0.4)}),
        ],
        "robustness": [
            line
            for point, pcc in (("clean", 0.8), ("misregistration_um=30", 0.6))
            for line in (
                described("robustness", "breast", "breast", point),
                result("robustness", "breast", "breast", "ours", {"20 µm": genes(pcc, pcc, pcc)}, point=point),
            )
        ],
        "domains": [
            line
            for name, ari in (("one", 0.5), ("two", 0.1))
            for line in (
                described("domains", name, name),
                result("domains", name, name, "ours", {"spots": {"ari": ari}}),
                result("domains", name, name, "spots", {"spots": {"ari": 0.3}}),
            )
        ],
    }
    for task, own in lines.items():
        (tmp_path / f"{task}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in own))
    return tmp_path


@pytest.fixture
def page(folder, capsys):
    import report

    report.main(["--results", str(folder)])
    capsys.readouterr()
    return (folder / "report.md").read_text()


def rows(text, first):
    """Cells after the first, of every table row that starts with ``first``."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [cells[1:] for cells in lines if cells[0] == first]


def test_wins_have_their_interval(page):
    best = page.partition("## Ours beside the best")[2].partition("##")[0]
    (row,) = rows(best, "holdout")
    assert row[:4] == ["her2st_C2", "0.800", "cubic 0.600", "+0.200 [+0.200, +0.200]"]
    assert row[4:] == ["TESLA 0.500", "+0.300 [+0.300, +0.300]", "–"]


def test_losses_are_reported(page):
    losses = page.partition("## Where ours does not win")[2].partition("##")[0]
    assert {(row[1], row[2]) for row in rows(losses, "hr_sim")} == {
        ("PCC", "cubic"),
        ("RMSE (s.d.)", "cubic"),
        ("deviance", "cubic"),
    }
    assert not rows(losses, "holdout")


def test_failures_are_counted_with_their_reason(page):
    assert ["failed", "1", "ValueError: too / small"] in rows(page, "kriging")
    assert ["–", "0 of 1", "–", "–"] in rows(page, "kriging")


def test_figures_asked_for_stand_beside_what_was_measured(page):
    asked = page.partition("## What was asked for")[2].partition("##")[0]
    assert rows(asked, "PCC, misregistration_um=30, breast")[0][:2] == ["≥ 0.95 of clean", "0.750 (no published tool)"]
    assert rows(asked, "domain ARI above that of the spots")[0][1] == "1 of 2"


def test_pictures_and_a_page_for_each_task(page, folder):
    assert (folder / "robustness.png").read_bytes()[:4] == b"\x89PNG"
    text = (folder / "holdout.md").read_text()
    assert rows(text, "ours")[0][0] == "0.800 ± 0.082"
    assert rows(text, "cubic")[-1][:2] == ["+0.200 [+0.200, +0.200]", "100% of 3"]


def test_thirds_are_of_abundance(page, folder):
    text = (folder / "holdout.md").read_text()
    thirds = text.partition("By third of abundance")[2].partition("Ours minus")[0]
    assert rows(thirds, "ours")[0] == ["0.700 / 0.300", "0.800 / 0.200", "0.900 / 0.100"]


def test_infinite_scores_are_counted_and_not_averaged():
    import numpy as np
    from tables import cell

    assert cell({"a": np.array([1.0, np.inf]), "b": np.array([3.0])}) == "2.000 (1 ∞)"
    assert cell({"a": np.array([np.inf])}) == "∞"
    assert cell({}) == "–"


def test_without_results_the_command_is_named(tmp_path):
    import report

    with pytest.raises(SystemExit, match="hadmst-sc benchmark"):
        report.main(["--results", str(tmp_path)])
