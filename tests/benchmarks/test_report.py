"""The report says what its files say: losses before wins, what is missing or stale, and nothing that was typed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

MADE = {"commit": "c" * 40, "uncommitted_changes": False, "machine": "toy", "versions": {"python": "3"}}


def result(task, group, section, method, scores, *, point="clean", **more):
    place = {"task": task, "group": group, "section": section, "point": point, "method": method, "settings": "s"}
    cost = {"seconds": 2.0, "memory_mb": 100}
    weights = {"weights": {"default": "a1" * 32}} if method.startswith("ours") else {}
    return place | {"status": "done", "scores": scores, "cost": cost, "made": MADE} | weights | more


def described(task, group, section, point="clean"):
    about = {
        "n_spots": 200,
        "bins": 900,
        "genes": list("abc"),
        "kinds": ["real"] * 3,
        "counts_per_spot": [1.0, 2.0, 3.0],
    }
    return {"task": task, "group": group, "section": section, "point": point, "about": about, "inputs": {}}


def genes(*pcc, half=0.01):
    """Scores of three genes, and of resampled sections within ``half`` of their mean."""
    scores = {"pcc": list(pcc), "rmse": [1 - p for p in pcc], "deviance": [1 - p for p in pcc]}
    common = np.linspace(-half, half, 41)
    resampled = {name: (np.mean(values) + common).tolist() for name, values in scores.items()}
    return scores | {"resampled": resampled}


def toy():
    """Ours wins the hold-out, loses the simulated spots, and is level on the phantoms; one method failed."""
    her2st = [f"her2st_C{i}" for i in range(2, 7)]
    holdout = []
    for i, section in enumerate(her2st):
        level = 0.7 + 0.01 * i
        holdout += [
            described("holdout", "her2st", section),
            result("holdout", "her2st", section, "ours", {"spots": genes(level, level, level)}),
            result("holdout", "her2st", section, "linear", {"spots": genes(level - 0.2, level - 0.2, level - 0.2)}),
            result("holdout", "her2st", section, "TESLA", {"spots": genes(0.4, 0.5, 0.6)}),
        ]
    failed = {"status": "failed", "reason": "ValueError: too | small"}
    holdout.append(result("holdout", "her2st", "her2st_C2", "kriging", {}, **failed))
    scales = {"20 µm": (0.3, 0.4, 0.45), "40 µm": (0.5, 0.6, 0.65)}
    hr_sim = [described("hr_sim", "breast", "breast")]
    for n, method in enumerate(("ours", "linear", "U-Net, registered")):
        own = {scale: genes(*[values[n]] * 3) for scale, values in scales.items()}
        if method != "ours":
            for of_scale in own.values():  # the draws of ours move otherwise, by less than it loses
                of_scale["resampled"]["pcc"] = [value + 0.001 for value in of_scale["resampled"]["pcc"]]
        hr_sim.append(result("hr_sim", "breast", "breast", method, own))
    phantom = [described("phantom", "in distribution", "grf 1")]
    phantom.append(result("phantom", "in distribution", "grf 1", "ours", {"10 µm": genes(0.6, 0.6, 0.6, half=0.02)}))
    other = genes(0.6, 0.59, 0.6, half=-0.05)  # resampled sections go now one way, now the other
    phantom.append(result("phantom", "in distribution", "grf 1", "linear", {"10 µm": other}))
    parts = []
    for group, switched in (("phantoms, in distribution", 0.2), ("hold-out, her2st", 0.3)):
        for i in range(3):
            section, level = f"{group} {i}", 0.7 + 0.01 * i
            same = {"spots": genes(level, level, level)}
            parts += [
                described("parts", group, section),
                result("parts", group, section, "ours", same),
                result("parts", group, section, "ours, no gate", same),
                result("parts", group, section, "ours, no student", {"spots": genes(*[level - switched] * 3)}),
                result("parts", group, section, "ours, hard consistency", {"spots": genes(*[level + 0.1] * 3)}),
            ]
    draws = [described("draws", "breast, Xenium", "breast, Xenium")]
    of_draws = {"covered": [0.9, 0.8, 0.7], "covered, half as wide": [0.5] * 3, "covered, twice as wide": [1.0] * 3}
    draws.append(result("draws", "breast, Xenium", "breast, Xenium", "ours, samples", {"20 µm": of_draws}))
    robustness = []
    for point, pcc in (("clean", 0.8), ("misregistration_um=30", 0.6)):
        robustness.append(described("robustness", "breast", "breast", point))
        for method, worse in (("ours", 0.0), ("linear", 0.2)):
            scores = {"20 µm": genes(*[pcc - worse] * 3)}
            robustness.append(result("robustness", "breast", "breast", method, scores, point=point))
    domains = []
    for name, ari in (("one", 0.5), ("two", 0.1)):
        domains.append(described("domains", name, name))
        domains.append(result("domains", name, name, "ours", {"spots": {"ari": ari}}))
        domains.append(result("domains", name, name, "spots", {"spots": {"ari": 0.3}}))
    lines = {"holdout": holdout, "hr_sim": hr_sim, "phantom": phantom, "parts": parts, "draws": draws}
    return lines | {"robustness": robustness, "domains": domains}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("results")
    for task, own in toy().items():
        (path / f"{task}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in own))
    return path


def planned(folder):
    """The cells of the files, as if they were the plan."""
    from plan import Cell

    lines = [json.loads(line) for file in folder.glob("*.jsonl") for line in file.read_text().splitlines()]
    names = ("task", "group", "section", "point", "method")
    cells = [Cell(*(one[name] for name in names), case="phantom", options={}) for one in lines if "method" in one]
    for cell in cells:
        object.__setattr__(cell, "settings", "s")
    return cells


def written(folder, monkeypatch, cells, old=()):
    """The page, where the plan is of these cells, and some measurements are old."""
    import plan
    import report

    monkeypatch.setattr(plan, "cells", lambda *_: cells)
    monkeypatch.setattr(plan, "up_to_date", lambda name, _: name not in old)
    report.main(["--results", str(folder)])
    return (folder / "report.md").read_text()


@pytest.fixture(scope="module")
def page(folder):
    with pytest.MonkeyPatch.context() as patch:
        return written(folder, patch, [cell for cell in planned(folder) if cell.method != "kriging"])


def section(text, title):
    return text.partition(f"## {title}")[2].partition("\n## ")[0]


def rows(text, first):
    """Cells after the first, of every table row that starts with ``first``."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [cells[1:] for cells in lines if cells[0] == first]


FIRST = "Ours against the best of the others, losses first"


def test_losses_come_before_what_is_undecided_and_that_before_wins(page):
    text = section(page, FIRST)
    words = [line.split("|")[1].strip() for line in text.splitlines() if line[:1] == "|"]
    verdicts = [word for word in words if word in ("lost", "undecided", "won")]
    assert verdicts == ["lost"] * 6 + ["undecided"] * 3 + ["won"] * 3
    assert page.index(FIRST) < min(page.index(title) for title in ("Parts of the method", "Every method on every task"))


def test_wins_losses_and_what_is_undecided_have_rival_and_interval(page):
    text = section(page, FIRST)
    (won,) = [row for row in rows(text, "won") if row[2] == "PCC"]
    assert won == [
        "holdout",
        "her2st",
        "PCC",
        "0.720",
        "linear 0.520",
        "+0.200 [+0.200, +0.200]",
        "–",
        "5 sections × 3 genes, donors: 1",
    ]
    lost = [row for row in rows(text, "lost") if row[2] == "PCC"]
    assert [row[4] for row in lost] == ["U-Net, registered 0.450", "U-Net, registered 0.650"]
    assert all(row[5].startswith("-0.150 [") and row[7].startswith("tiles × 3 genes") for row in lost)
    assert all(row[5].startswith("+0.150 [") for row in rows(text, "lost") if row[2] != "PCC")
    (level,) = [row for row in rows(text, "undecided") if row[2] == "PCC"]
    assert level[4] == "linear 0.597" and "[-" in level[5] and ", +" in level[5]
    assert rows(text, "holdout") == [["0", "0", "3", *"030"]] and rows(text, "hr_sim") == [["6", "0", "0", *"060"]]


def test_the_one_screen_has_a_row_per_set_at_its_finest_scale(page, folder):
    text = (folder / "headline.md").read_text()
    cells = [[one.strip() for one in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"][2:]
    assert [row[0] for row in cells] == [
        "hr_sim: breast, 20 µm",
        "phantom: in distribution, 10 µm",
        "holdout: her2st",
    ]
    assert ["lost" in cells[0][-3], "undecided" in cells[1][-3], "won" in cells[2][-3]] == [True] * 3
    assert [row[-1] for row in cells] == ["6 / 0 / 0", "0 / 3 / 0", "0 / 0 / 3"]  # of all scores and scales
    assert (folder / "headline.png").read_bytes()[:4] == b"\x89PNG"


def test_a_page_that_is_complete_and_fresh_starts_with_its_title(page):
    assert page.splitlines()[0] == "# Benchmark, full profile"


def test_a_section_with_few_spots_is_undecided_whatever_its_interval(folder):
    import plan
    import report
    from outcomes import Results
    from pairs import LEAST_SPOTS

    found = Results.read(folder)
    for n_spots, verdict in ((LEAST_SPOTS, -1), (LEAST_SPOTS - 1, 0)):
        places = {key: about | {"n_spots": n_spots} for key, about in found.sections.items()}
        summary = report.Summary(Results(found.cells, places), plan.load(), {})
        (one, _) = [one for one in summary.verdicts if one.view.task == "hr_sim" and one.metric == "pcc"]
        assert one.sign == verdict and ("too few spots" in one.over_rival.over) == (verdict == 0)
        (of_many,) = [one for one in summary.verdicts if one.view.task == "holdout" and one.metric == "pcc"]
        assert of_many.sign == 1  # its interval is over sections


def test_ours_is_counted_against_its_closed_form_and_domains_have_a_verdict(folder):
    import plan
    import report
    from outcomes import Results

    found = Results.read(folder)
    more = [
        result("holdout", "her2st", f"her2st_C{i}", "ours, closed form", {"spots": genes(*[0.74 + 0.01 * i] * 3)})
        for i in range(2, 7)
    ]
    more += [result("domains", name, name, "linear", {"spots": {"ari": 0.9}}) for name in ("one", "two")]
    summary = report.Summary(Results((*found.cells, *more), found.sections), plan.load(), {})
    table = summary.against_the_best()
    assert rows(table, "holdout") == [["0", "0", "3", "3", "0", "0"]]
    assert rows(table, "domains") == [["0", "2", "0", "0", "2", "0"]]  # a section alone, whose tiles have no scores
    assert "against itself without network won 0, lost 3:" in summary.numbers()


def test_old_measurements_are_told_in_the_first_line(folder, tmp_path, monkeypatch):
    import shutil

    shutil.copytree(folder, tmp_path / "copy")
    cells = [cell for cell in planned(folder) if cell.method != "kriging"]
    first = written(tmp_path / "copy", monkeypatch, cells, old=("laws", "beads")).splitlines()[0]
    assert first == "**Measurements made by other code: laws, beads.**"


def test_a_stale_or_missing_cell_is_told_in_the_first_line(folder, tmp_path, monkeypatch):
    import shutil

    import plan

    shutil.copytree(folder, tmp_path / "copy")
    cells = planned(folder)
    object.__setattr__(next(cell for cell in cells if cell.task == "hr_sim"), "settings", "of other code")
    first = written(tmp_path / "copy", monkeypatch, cells).splitlines()[0]
    assert first.startswith(f"**Of {len(cells)} results 1 are stale")
    assert "1 are missing" in first and first.endswith("in: hr_sim, holdout.**")  # kriging failed in the hold-out
    assert (tmp_path / "copy" / "headline.md").read_text().startswith("**Of ")
    assert plan.CLEAN == "clean"


def test_a_part_helps_harms_or_has_no_clear_effect(page):
    text = section(page, "Parts of the method")
    verdicts, of_sets = text.split("\n\n")[-2:]
    assert rows(verdicts, "ours, no gate") == [["0 / 1 / 0"]]
    assert rows(verdicts, "ours, no student") == [["1 / 0 / 0"]]
    assert rows(verdicts, "ours, hard consistency") == [["0 / 0 / 1"]]  # it is better switched
    student = {row[0]: row[1:] for row in rows(of_sets, "ours, no student")}
    assert student["hold-out, her2st"][0] == "+0.300 [+0.300, +0.300]"  # ours minus it: the part helps
    assert student["hold-out, her2st"][1] == "-0.300 [-0.300, -0.300]"
    assert student["hold-out, her2st"][3] == "3 sections × 3 genes"
    assert {row[1] for row in rows(of_sets, "ours, no gate")} == {"+0.000 [+0.000, +0.000]"}


def test_a_switch_is_counted_over_the_sets_on_which_it_was_run(folder):
    import plan
    import report
    from outcomes import Results

    known = Results.read(folder)
    more = []
    for i in range(3):
        section, same = f"other {i}", {"spots": genes(0.7 + 0.01 * i, 0.7, 0.7)}
        more.append(result("parts", "hold-out, other", section, "ours", same))
        more.append(result("parts", "hold-out, other", section, "ours, no gate", same))
    places = {("parts", f"other {i}", "clean"): described("parts", "", "")["about"] for i in range(3)}
    both = Results((*known.cells, *more), known.sections | places)
    helps = report.Summary(both, plan.load(), {}).helps
    assert helps["ours, no student"] == "1 / 0 / 0"  # not run on the other set
    assert helps["ours, no gate"] == "0 / 2 / 0"


def test_a_part_that_helps_by_one_score_and_harms_by_another_has_no_clear_effect():
    from report import _effects

    assert _effects([{1, 0}, {1, -1}, {0}, {-1}]) == "1 / 2 / 1"


def test_samples_are_told_by_their_medians(page):
    (row,) = rows(section(page, "Spread"), "breast, Xenium")
    assert row[:5] == ["20 µm", "ours, samples", "0.80", "0.50", "1.00"]


@pytest.mark.parametrize(
    ("n_sections", "n_spots", "over", "told"),
    [
        (1, 200, "3 seeds of training", "1 / 0 / 0"),
        (1, 100, "3 seeds of training (too few spots)", "0 / 1 / 0"),
        (4, 100, "4 sections", "1 / 0 / 0"),
    ],
)
def test_the_gain_by_the_adversary_is_over_sections_or_seeds(tmp_path, n_sections, n_spots, over, told):
    summary = summary_of_adversary(tmp_path, n_sections, n_spots, power=(1.1, 1.1))
    ((*own, gain, in_power, found_over),) = rows(summary.adversary(), "breast")
    mean = 0.53 + 0.01 + 0.01 * (n_sections - 1) / 2
    assert own == ["20 µm", "0.500", f"{mean:.3f}", "1.100", "1.100"] and found_over == over
    assert gain.startswith(f"{mean - 0.5:+.3f} [+0.") and in_power == "+0.000 [+0.000, +0.000]"
    assert summary.helps_of_adversary == told
    assert rows(summary.state_of_parts(), "channel-aware adversarial learner") == [[told]]
    assert summary.samples() == ""  # they have a table of their own


@pytest.mark.parametrize(("power", "told"), [((0.8, 0.9), "0 / 1 / 0"), ((1.1, 0.8), "1 / 0 / 0")])
def test_the_adversary_has_no_clear_effect_where_it_moves_the_power_away_from_1(tmp_path, power, told):
    assert summary_of_adversary(tmp_path, 1, 200, power).helps_of_adversary == told


def summary_of_adversary(folder: Path, n_sections: int, n_spots: int, power: tuple[float, float]):
    """Of networks with the adversarial learner, whose CRPS is the better one, and without; with their power."""
    import plan
    import report
    from outcomes import Results

    lines = []
    for i in range(n_sections):
        of_section = described("draws", "breast", f"section {i}")
        of_section["about"]["n_spots"] = n_spots
        lines.append(of_section)
        for seed in range(3):
            arms = zip(("with", "without"), (0.50, 0.53 + 0.01 * seed + 0.01 * i), power, strict=True)
            for arm, crps, of_arm in arms:
                scores = {"20 µm": {"crps": [crps - 0.2, crps, crps + 0.3], "power": [of_arm] * 3}}
                lines.append(result("draws", "breast", f"section {i}", f"ours, samples, trained {arm} {seed}", scores))
    (folder / "draws.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return report.Summary(Results.read(folder), plan.load(), {})


def test_failures_are_counted_with_their_reason(page):
    text = section(page, "What was filled")
    assert ["failed", "1", "ValueError: too / small"] in rows(text, "kriging")
    assert "0 of 1" in rows(text, "kriging")[0]


def test_disturbed_sections_and_scores_without_interval_have_an_end_too(folder):
    import plan
    import report
    from outcomes import Results

    found = Results.read(folder)
    more = [
        result("hr_sim", "breast", "breast", method, {"20 µm": {"moran": value}})
        for method, value in (("ours", 0.4), ("nearest", 0.7), ("TESLA", 0.6))
    ]
    kept = [one for one in found.cells if one["task"] != "hr_sim"]
    summary = report.Summary(Results((*kept, *more), found.sections), plan.load(), {})
    assert "hr_sim breast, 20 µm -0.300 (nearest)" in summary.downstream()
    assert "robustness 0 / 0 / 3" in summary.headline_page()  # ours is better by .2 with the image displaced


def test_robustness_is_a_share_of_the_clean_score(page):
    text = section(page, "Robustness")
    assert rows(text, "ours") == [["0.800", "0.75"]]
    assert rows(text, "misregistration_um=30") == [["0", "0", "3"]]  # lost, undecided, won; the clean one counts above


def test_domains_have_a_mean_over_sections(page):
    (row,) = [row for row in rows(section(page, "What users do next"), "ours") if row[:2] == ["0.500", "0.100"]]
    assert row[2] == "0.300"


def test_pictures_and_a_page_for_each_task(page, folder):
    assert (folder / "robustness.png").read_bytes()[:4] == b"\x89PNG"
    text = (folder / "holdout.md").read_text()
    assert rows(text, "ours")[0][0] == "0.720 ± 0.014"
    assert rows(text, "linear")[-1] == [
        "+0.200 [+0.200, +0.200]",
        "-0.200 [-0.200, -0.200]",
        "-0.200 [-0.200, -0.200]",
        "5 sections × 3 genes",
    ]


def test_thirds_are_of_abundance(page, folder):
    thirds = (folder / "holdout.md").read_text().partition("By third of abundance")[2].partition("Ours minus")[0]
    assert rows(thirds, "TESLA")[0] == ["0.400 / 0.600", "0.500 / 0.500", "0.600 / 0.400"]


def test_infinite_scores_are_counted_and_not_averaged():
    from tables import cell

    assert cell({"a": np.array([1.0, np.inf]), "b": np.array([3.0])}) == "2.000 (1 ∞)"
    assert cell({"a": np.array([np.inf])}) == "∞"
    assert cell({}) == "–"


def test_every_section_of_the_report_has_its_table_and_controls_are_scored():
    import plan
    import report

    declared = plan.load()
    assert all(callable(getattr(report.Summary, one["table"])) for one in declared["report"])
    kinds = declared["methods"]
    assert set(report.CONTROLS) <= {*kinds["ours"], *kinds["controls"], *kinds["simple"]}
    (text,) = [one["text"] for one in declared["report"] if one["table"] == "controls"]
    assert f"below {report.CONTROLS[-1]}" in text


def test_an_image_that_was_turned_is_told_to_be_refused(folder, tmp_path, monkeypatch):
    from tables import TURNED

    lines = [json.loads(line) for line in (folder / "holdout.jsonl").read_text().splitlines()]
    of = {"task": "holdout", "group": "her2st"}
    for i in range(2, 7):
        lines.append(result(*of.values(), f"her2st_C{i}", "ours, no H&E", {"spots": genes(0.5, 0.5, 0.5)}))
        why = {"status": "refused", "reason": "ContractError: turned"}
        known = {"spots": genes(0.3, 0.3, 0.3)}
        lines.append(result(*of.values(), f"her2st_C{i}", TURNED, known, **(why if i < 5 else {})))
    (tmp_path / "holdout.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = written(tmp_path, monkeypatch, [cell for cell in planned(tmp_path) if cell.method != "kriging"])
    (row,) = rows(section(page, "Controls"), "holdout")
    assert row[1:4] == ["0.720", "0.500", "0.300, refused in 3 of 5"] and row[5].startswith("-0.200")
    assert page.startswith("# Benchmark")  # a refusal is a result: nothing is missing


def test_without_results_the_command_is_named(tmp_path):
    import report

    with pytest.raises(SystemExit, match="hadmst-sc benchmark"):
        report.main(["--results", str(tmp_path)])


def test_the_readme_gets_its_tables_between_their_markers_and_nothing_else(folder):
    import plan
    import report
    from outcomes import Results

    declared = plan.load()
    summary = report.Summary(Results.read(folder, list(declared["tasks"])), declared, {})
    page = "A\n<!-- numbers -->\nold\n<!-- end of numbers -->\nB\n<!-- parts -->\n<!-- end of parts -->\nC\n"
    made = summary.readme(page)
    assert summary.readme(made) == made and "old" not in made
    assert [line for line in made.splitlines() if line in ("A", "B", "C")] == ["A", "B", "C"]
    (row,) = rows(made, "breast cancer, spots made from Xenium, 20 µm")
    assert row[:2] == ["0.300", "0.450"] and row[3].startswith("-0.150 [") and row[4] == "6 / 0 / 0"
    assert "Ours won 3 of 12 comparisons, lost 6;" in made
    assert rows(made, "semantic distillation network") == [["1 / 0 / 0"]]
    assert rows(made, "gate (added by us)") == [["0 / 1 / 0"]]
    assert rows(made, "spatial alignment module: registration") == [["not measured in this version"]]
