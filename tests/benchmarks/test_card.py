"""The model card says what its files say, and nothing else."""

from __future__ import annotations

import json

import pytest

SHA = "a1" * 32


@pytest.fixture
def card():
    kinds = [
        {"size_um": 1920.0, "bin_um": 10.0, "spot_um": 55.0, "pitch_um": 100.0, "share": 0.75},
        {"size_um": 2560.0, "bin_um": 20.0, "spot_um": 100.0, "pitch_um": 200.0, "share": 0.25},
    ]
    bank = {"first_seed": 1000, "n_phantoms": 160, "n_genes": 64, "kinds": kinds}
    training = {"seed": 7, "steps": 500, "crop": 64, "sections": 3, "genes": 8, "drop_he": 0.2, "bank": bank}
    log = [{"step": 25 * i, "mean": 0.8, "denoising": 0.6, "seconds": 60.0 * i} for i in range(1, 11)]
    # Resumed: seconds start anew.
    log += [{"step": 250 + 25 * i, "mean": 0.7, "denoising": 0.5, "seconds": 30.0 * i} for i in range(1, 11)]
    spec = {"context": 22, "token": 7, "widths": [24, 40, 64], "halo": 32}
    return {"sha256": SHA, "spec": spec, "n_parameters": 291169, "training": training, "log": log}


@pytest.fixture
def phantoms():
    """Lines of a result file."""
    scores = {
        "nearest": (0.25, 0.9),
        "ridge on H&E": (0.35, 0.8),
        "ridge on H&E, log, soft": (0.45, 0.85),
        "ours, closed form": (0.5, 0.7),
        "ours": (0.625, 0.6),
    }
    place = {"task": "phantom", "group": "in distribution", "section": "grf 900000", "point": "clean"}
    about = {"n_spots": 300, "genes": ["a", "b"], "kinds": ["x", "y"], "counts_per_spot": [1.0, 2.0]}
    lines = [place | {"about": about}]
    for method, (pcc, rmse) in scores.items():
        of_genes = {"pcc": [pcc, pcc], "rmse": [rmse, rmse]}
        of_genes |= {"deviance": [None, 0.5] if method == "nearest" else [0.5, 0.25]}
        line = place | {"method": method, "status": "done", "scores": {"10 µm": of_genes}, "cost": {"seconds": 1.0}}
        lines.append(line | ({"weights": {"default": SHA}} if method.startswith("ours") else {}))
    return lines


def results(lines):
    from outcomes import Results

    sections = {(x["task"], x["section"], x["point"]): x["about"] for x in lines if "about" in x}
    return Results(tuple(x for x in lines if "method" in x), sections)


def row(text: str, name: str) -> list[str]:
    """Cells after the first of the table row that starts with ``name``."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    (found,) = [cells[1:] for cells in rows if cells[0] == name]
    return found


def test_training_is_described_from_the_card(card):
    from card import render

    text = render(card, results([]))
    assert "seeds 1,000 to 1,159" in text and "No real section was trained on" in text
    assert row(text, "parameters") == ["291,169"] and row(text, "sha256") == [f"`{SHA}`"]
    assert row(text, "seed") == ["7"] and row(text, "steps") == ["500 of 500"]
    assert row(text, "1920") == ["10", "55", "100", "75%"]
    assert row(text, "mean loss")[0].startswith("0.700 ")


def test_training_time_adds_up_over_resumes(card):
    from card import render

    assert row(render(card, results([])), "time") == ["15 min"]  # 10 min, then 5 min
    del card["log"][3]["seconds"]
    assert row(render(card, results([])), "time") == ["not recorded"]


def test_a_family_shows_its_best_variant_in_each_column(card, phantoms):
    from card import render

    text = render(card, results(phantoms))
    assert row(text, "ridge on H&E") == ["0.450", "0.800", "0.375"]
    assert row(text, "ours, closed form") == ["0.500", "0.700", "0.375"]
    assert row(text, "ours") == ["0.625", "0.600", "0.375"]


def test_an_infinite_score_is_not_averaged_away(card, phantoms):
    from card import render

    assert row(render(card, results(phantoms)), "nearest") == ["0.250", "0.900", "∞"]


def test_missing_results_are_named_with_their_command(card, phantoms):
    from card import render

    text = render(card, results(phantoms))
    assert "Figures of `holdout` are missing: run `hadmst-sc benchmark --tasks holdout`" in text
    assert "Figures of `phantom` are missing" not in text


def test_figures_of_other_weights_are_refused(card, phantoms):
    from card import render

    for line in phantoms:
        if "weights" in line:
            line["weights"] = {"default": "b2" * 32}
    text = render(card, results(phantoms))
    assert "phantom in distribution, 10 µm was not made with these weights" in text and "0.625" not in text


def test_weights_of_a_split_are_named(card, phantoms):
    from card import render

    for line in phantoms:
        if "weights" in line:
            line["weights"] = {"training/brain_only.safetensors": "b2" * 32}
    text = render(card, results(phantoms))
    assert "Weights of the split, `training/brain_only.safetensors`" in text and "0.625" in text


def test_the_command_writes_the_card_beside_the_weights(card, phantoms, tmp_path):
    from card import main

    (tmp_path / "default.json").write_text(json.dumps(card))
    (tmp_path / "phantom.jsonl").write_text("".join(json.dumps(line) + "\n" for line in phantoms))
    main(["--card", str(tmp_path / "default.json"), "--results", str(tmp_path)])
    assert row((tmp_path / "default.md").read_text(), "ours") == ["0.625", "0.600", "0.375"]
