"""The run: every cell alone, nothing done twice, nothing lost, and the same numbers each time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

CHEAP = ["linear", "kriging, log, soft", "true rate"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Results of a small run, and its folder."""
    import run

    folder = tmp_path_factory.mktemp("results")
    run.main([*"--profile quick --tasks phantom --workers 2 --output".split(), str(folder), "--methods", *CHEAP])
    return folder


def cells(folder):
    lines = [json.loads(line) for line in (folder / "phantom.jsonl").read_text().splitlines()]
    return [line for line in lines if "method" in line], [line for line in lines if "method" not in line]


@pytest.fixture
def cell():
    from plan import Cell

    options = {"seed": 900_000, "style": "voronoi", "size_um": 640.0, "n_genes": 4}
    return Cell("phantom", "in distribution", "voronoi 900000", "clean", "zero", "phantom", options)


def one(cell, **options):
    import run

    ((_, found),) = run.run([cell], workers=1, time_limit=options.get("time_limit", 120))
    return found


def test_each_method_has_a_score_per_gene_and_a_cost(finished):
    done, sections = cells(finished)
    assert [c["method"] for c in done[:3]] == CHEAP  # in the order of the plan
    assert len(done) == 6 and len(sections) == 2
    for c in done:
        (scores,) = c["scores"].values()
        genes = next(s["about"]["genes"] for s in sections if s["section"] == c["section"])
        assert c["status"] == "done" and len(scores["pcc"]) == len(genes)
        assert c["cost"]["memory_mb"] > 50
        assert len(c["made"]["commit"]) in (7, 40)
    assert all(p > 0 for c in done if c["method"] == "linear" for p in next(iter(c["scores"].values()))["pcc"])
    assert all(p == 1 for c in done if c["method"] == "true rate" for p in next(iter(c["scores"].values()))["pcc"])


def test_the_same_command_gives_the_same_file_but_for_costs(finished, tmp_path):
    import run

    run.main([*"--profile quick --tasks phantom --workers 1 --output".split(), str(tmp_path), "--methods", *CHEAP])

    def without_costs(folder):
        lines = (json.loads(line) for line in (folder / "phantom.jsonl").read_text().splitlines())
        return [{key: value for key, value in line.items() if key not in ("cost", "made")} for line in lines]

    assert without_costs(finished) == without_costs(tmp_path)
    assert (finished / "phantom.md").exists() and (finished / "report.md").exists()


def test_what_is_done_is_not_done_again_and_a_torn_line_is(finished, tmp_path, capsys):
    import run

    path = tmp_path / "phantom.jsonl"
    path.write_text((finished / "phantom.jsonl").read_text()[:-40])  # stopped while it wrote the last line
    command = [*"--profile quick --tasks phantom --output".split(), str(tmp_path), "--methods", *CHEAP]
    run.main([*command, "--list"])
    assert "6 results, 5 of them done, 0 stale" in capsys.readouterr().out
    run.main(command)
    assert [c["status"] for c in cells(tmp_path)[0]] == ["done"] * 6
    run.main(command)
    assert "6 results, 6 of them done, 0 stale" in capsys.readouterr().out


def test_what_other_code_has_made_is_stale_and_is_done_again(finished, tmp_path, monkeypatch, capsys):
    import run

    path = tmp_path / "phantom.jsonl"
    lines = [json.loads(line) for line in (finished / "phantom.jsonl").read_text().splitlines()]
    old = next(line for line in lines if line.get("method") == "linear")
    fresh, old["settings"] = old["settings"], "of other code"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [*"--profile quick --tasks phantom --workers 1 --output".split(), str(tmp_path), "--methods", *CHEAP]
    monkeypatch.setattr(run.plan, "up_to_date", lambda name, script: name != "registration")
    run.main([*command, "--list"])
    told = capsys.readouterr().out
    assert "6 results, 5 of them done, 1 stale" in told
    assert f"phantom · {old['section']} · clean · linear (stale)" in told
    assert "measurement registration (stale or missing)" in told and told.count("measurement ") == 1
    run.main(command)
    assert {line["settings"] for line in cells(tmp_path)[0] if line["method"] == "linear"} >= {fresh}
    assert "of other code" not in path.read_text()


def test_rivals_hold_when_other_code_gives_the_same_numbers_and_only_then(finished, tmp_path, capsys):
    """``--refresh`` after a change of the code around a rival, here told by another digest of it."""
    import run

    def changed(line, **more):
        declared, method, _ = line["settings"].split(".")
        return line | {"settings": f"{declared}.{method}.ffffffffffff"} | more

    done, sections = cells(finished)
    first, second, *rest = (line for line in done if line["section"] == done[0]["section"] and line["method"] != "ours")
    lines = [*sections, changed(first), changed(second, fingerprint="of another section"), *rest]
    (tmp_path / "phantom.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run.main([*"--profile quick --tasks phantom --refresh --list --output".split(), str(tmp_path), "--methods", *CHEAP])
    shown = capsys.readouterr().out
    assert "1 of 2 results still hold" in shown
    again = {line["method"]: line for line in cells(tmp_path)[0] if line["section"] == done[0]["section"]}
    assert "ffffffffffff" not in again[first["method"]]["settings"]
    assert "ffffffffffff" in again[second["method"]]["settings"]
    assert again[first["method"]]["scores"] == first["scores"]


@pytest.mark.parametrize("around", [False, True], ids=["of the method", "around it too"])
@pytest.mark.parametrize("better", [0.0, 0.1])
def test_other_code_holds_if_its_cheapest_cell_has_the_same_scores(finished, tmp_path, capsys, better, around):
    import run

    done, sections = cells(finished)
    lines = [line for line in done if line["method"] == "linear"]
    for line in lines:
        declared, _, case = line["settings"].split(".")
        line["settings"] = f"{declared}.ffffffffffff.{'ffffffffffff' if around else case}"
    cheapest = min(lines, key=lambda line: line["cost"]["seconds"])
    (scores,) = cheapest["scores"].values()
    scores["pcc"] = [pcc - better for pcc in scores["pcc"]]
    (tmp_path / "phantom.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*sections, *lines]))
    command = [*"--profile quick --tasks phantom --refresh --list --methods linear --output".split(), str(tmp_path)]
    run.main(command)
    n = len(lines)
    told = f"phantom · linear: {0 if better else n} of {n} results still hold"
    assert told in capsys.readouterr().out
    now = {line["section"]: line for line in cells(tmp_path)[0]}
    assert ("kept" in now[cheapest["section"]]) == (not better)
    assert ("ffffffffffff" in now[cheapest["section"]]["settings"]) == bool(better)


@pytest.mark.parametrize(
    ("others", "alike"),
    [
        ({"10 µm": {"pcc": [0.52, 0.4809], "ssim": [0.1, 0.1]}}, True),  # single genes move, and other scores
        ({"10 µm": {"pcc": [0.502, 0.5021], "ssim": [0.9, 0.9]}}, False),
        ({"10 µm": {"pcc": [0.5], "ssim": [0.9, 0.9]}}, False),
        ({"20 µm": {"pcc": [0.5, 0.5], "ssim": [0.9, 0.9]}}, False),
        ({"10 µm": {"ssim": [0.9, 0.9]}}, False),
    ],
)
def test_scores_are_alike_if_no_mean_over_genes_moves(others, alike):
    import run

    assert run._alike({"10 µm": {"pcc": [0.5, 0.5], "ssim": [0.9, 0.9]}}, others) == alike


def test_other_settings_are_other_results(cell, tmp_path):
    import run

    store = run.Store(tmp_path / "phantom.jsonl")
    store.add(cell, one(cell))
    again = run.Store(tmp_path / "phantom.jsonl")
    assert again.has(cell)
    assert not again.has(replace(cell, options=dict(cell.options) | {"n_genes": 5}))
    assert not again.has(replace(cell, method="nearest"))


def test_weights_belong_to_the_settings_of_ours_alone(cell):
    other = replace(cell, weights="training/brain_only.safetensors")
    assert cell.settings == other.settings
    assert replace(cell, method="ours").settings != replace(other, method="ours").settings


def test_resampled_scores_are_kept_where_intervals_need_them(cell):
    few, many = (measured(replace(cell, few=one)) for one in (True, False))
    for with_them, without in zip(few["scores"].values(), many["scores"].values(), strict=True):
        assert len(with_them["resampled"]["pcc"]) == 200
        assert "resampled" not in without
        assert {name: of for name, of in with_them.items() if name != "resampled"} == without


def measured(cell):
    import run

    return run.measure_cell(cell, run._Sections())


def test_a_registered_cell_is_given_the_section_as_it_is_registered(cell, monkeypatch):
    import cases.registered as registration

    shifted = replace(cell, method="ridge on H&E", disturbance=("misregistration_um", 60.0))
    seen = []
    monkeypatch.setattr(registration, "_register", lambda obs, align: seen.append(align) or obs)
    plain, moved = measured(shifted), measured(replace(shifted, method="ridge on H&E, registered", align="spots"))
    assert seen == ["spots"]
    assert plain["scores"] == moved["scores"]  # as nothing was moved


def test_a_section_is_read_once_for_all_of_its_cells(cell, monkeypatch):
    import cases
    import run

    built, phantom = [], cases.CASES["phantom"]
    monkeypatch.setitem(cases.CASES, "phantom", lambda **options: built.append(1) or phantom(**options))
    sections = run._Sections()
    for method in ("linear", "ridge on H&E", "ridge on H&E, registered"):
        sections.of(replace(cell, method=method))
    assert len(built) == 1


def test_what_a_method_dies_of_is_its_result(cell):
    found = one(replace(cell, method="no such method"))
    assert found["status"] == "failed" and "no such method" in found["reason"]


def test_only_an_image_that_was_put_wrong_on_purpose_may_be_refused(cell, monkeypatch):
    """And then the cell has its result."""
    import methods
    import run
    from tables import TURNED

    from hadmst_sc.section.errors import ContractError

    def refuse(*_):
        raise ContractError("image and spots do not fit", ["images/x: is turned. Turn it back."])

    monkeypatch.setattr(methods, "method", lambda *_: refuse)
    for name, status in ((TURNED, "refused"), ("ours", "failed")):
        of_name = replace(cell, method=name)
        found = run.measure_cell(of_name, run._Sections())
        assert found["status"] == status and found["reason"].startswith("ContractError: image and spots")
        assert of_name.state(found | {"settings": of_name.settings}) == ("fresh" if status == "refused" else "failed")


def test_maps_that_are_set_aside_have_the_same_scores(cell, monkeypatch):
    import run

    linear, sections = replace(cell, method="linear"), run._Sections()
    found = run.measure_cell(linear, sections)
    monkeypatch.setattr(run, "LARGE", 0)
    assert run.measure_cell(linear, sections)["scores"] == found["scores"]


def test_a_section_whose_file_is_missing_or_another_is_skipped_by_name(cell, tmp_path, monkeypatch):
    monkeypatch.setenv("HADMST_DATA", str(tmp_path))
    found = one(replace(cell, inputs={"a/b.h5ad": "0" * 64}))
    assert found["status"] == "skipped" and "a/b.h5ad is not in the data folder" in found["reason"]
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.h5ad").write_bytes(b"another")
    assert "sha256 differs" in one(replace(cell, inputs={"a/b.h5ad": "0" * 64}))["reason"]


def test_a_cell_that_takes_too_long_is_stopped_and_said_to_be(cell):
    slow = replace(cell, method="GP on H&E + space", options=dict(cell.options) | {"size_um": 2560.0, "n_genes": 64})
    found = one(slow, time_limit=1.0)
    assert found["status"] == "failed" and "not done after 1 s" in found["reason"]


def test_a_cell_that_is_stopped_cleans_up_after_itself(tmp_path):
    """A published tool runs in a process of its own, which would go on."""
    import run as runner

    script = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(runner.__file__).parent)!r})
import run

def long(cell, sections):
    try:
        print("started", flush=True)
        time.sleep(60)
    finally:
        print("cleaned up", flush=True)

run.measure_cell = long
from types import SimpleNamespace
run._host([SimpleNamespace(registered=False)], None, Path({str(tmp_path)!r}), 60, {{}})
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "started\n"
    process.terminate()
    assert process.communicate(timeout=30)[0] == "cleaned up\n"


def test_a_crash_is_the_result_of_its_cell_and_no_other(cell, monkeypatch):
    """A cell that takes its process with it, between two others of the same section."""
    import run

    cells = [replace(cell, method=method) for method in ("nearest", "zero", "linear")]
    found = list(run.run(cells, workers=1, time_limit=120))
    assert [c.method for c, _ in found] == ["nearest", "zero", "linear"]

    def crash(of, sections):
        if of.method == "zero":
            run.os._exit(3)
        return {"status": "done", "cost": {"seconds": 0.0}}

    sent = []
    monkeypatch.setattr(run, "measure_cell", crash)
    with tempfile.TemporaryDirectory() as folder:
        run._host(cells, type("To", (), {"send": staticmethod(sent.append)}), Path(folder), 120.0, {})
    assert [one["status"] for one in sent] == ["done", "failed", "done"]
    assert sent[1]["reason"] == "its process ended with 3"


def test_registration_that_moves_nothing_gives_the_results_as_given(cell, monkeypatch):
    """And one that moves the image does not."""
    import run
    from cases import registered

    cells = [replace(cell, method=method) for method in ("ridge on H&E", "ridge on H&E, registered")]
    monkeypatch.setattr(registered, "registered", lambda case, align: case)
    sent = []
    to = type("To", (), {"send": staticmethod(sent.append)})
    with tempfile.TemporaryDirectory() as folder:
        run._host(cells, to, Path(folder), 120.0, {})
        assert sent[1]["cost"] == sent[0]["cost"] and sent[1]["scores"] == sent[0]["scores"]
        known = {"status": "done", "scores": {}, "cost": {}, "fingerprint": ""}
        run._host(cells[1:], to, Path(folder), 120.0, {"ridge on H&E": known})
        assert sent[2] == known

        def moved(case, align):
            return replace(case, given=[replace(obs, he=np.roll(obs.he, 9)) for obs in case.given])

        monkeypatch.setattr(registered, "registered", moved)
        run._host(cells[1:], to, Path(folder), 120.0, {"ridge on H&E": known})
        assert sent[3]["status"] == "done" and sent[3] != known


def test_a_method_on_a_section_of_two_tasks_is_run_once(cell, tmp_path):
    import run

    twin = replace(cell, task="other", group="of the other")
    unlike = replace(twin, method="nearest")
    assert unlike.settings.split(".")[0] == twin.settings.split(".")[0]
    links = [replace(cell, method=name) for name in ("kriging, log, soft", "kriging, soft")]
    assert links[0].settings == links[1].settings and links[0].identity != links[1].identity
    stores = {name: run.Store(tmp_path / f"{name}.jsonl") for name in ("phantom", "other")}
    stores["phantom"].add(cell, one(cell), {"commit": "0000000"})
    run.share([twin, unlike], [cell, twin, unlike], stores)
    kept = run.Store(tmp_path / "other.jsonl")
    assert kept.has(twin) and not kept.has(unlike)
    assert kept.results[twin.key]["made"] == {"commit": "0000000"}
    assert kept.sections[twin.key[:3]]["about"] == stores["phantom"].sections[cell.key[:3]]["about"]


def test_a_choice_of_nothing_is_refused(tmp_path):
    import run

    with pytest.raises(SystemExit, match="choose nothing"):
        run.main(["--tasks", "nonsense", "--output", str(tmp_path)])


def test_a_cell_has_one_core_whatever_the_shell_has_set():
    import run

    names = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"]
    script = f"import os, run; print([os.environ[name] for name in {names}])"
    shell = os.environ | dict.fromkeys(names, "2") | {"PYTHONPATH": str(Path(run.__file__).parent)}
    done = subprocess.run([sys.executable, "-c", script], env=shell, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(["1", "1", "1"])


def test_measurements_run_once_each_and_timings_have_all_cores(tmp_path, monkeypatch, capsys):
    import records
    import run

    monkeypatch.setattr(records, "RESULTS", tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    script = tmp_path / "script.py"
    script.write_text(
        "import json, os, pathlib, sys\n"
        f"sys.path.insert(0, {str(Path(run.__file__).parent)!r})\n"
        "import sources\n"
        "made = {'provenance': {'code': sources.digest([pathlib.Path(__file__)])}}\n"
        "made['threads'] = os.environ.get('OMP_NUM_THREADS', 'all')\n"
        f"pathlib.Path({str(tmp_path)!r}, sys.argv[1] + '.json').write_text(json.dumps(made))\n"
    )
    run.measure({name: f"{script} {name}" for name in ("one", "two")}, 2, fresh=False)
    run.measure({"timed": f"{script} timed"}, 1, fresh=False)
    threads = {name: json.loads((tmp_path / f"{name}.json").read_text())["threads"] for name in ("one", "two", "timed")}
    assert threads == {"one": "1", "two": "1", "timed": "all"}
    (tmp_path / "two.json").unlink()
    capsys.readouterr()
    run.measure({name: f"{script} {name}" for name in ("one", "two")}, 2, fresh=False)
    told = capsys.readouterr().out
    assert (tmp_path / "two.json").exists() and "one: done" in told and "two: done" not in told


@pytest.mark.parametrize("change", ["code", "weights"])
def test_a_measurement_by_other_code_or_weights_is_run_again(tmp_path, monkeypatch, change):
    import plan
    import records
    import sources

    monkeypatch.setattr(records, "RESULTS", tmp_path)
    script = tmp_path / "script.py"
    script.write_text("ONE = 1")
    made = {"code": sources.digest([script]), "weights_sha256": {"default.safetensors": plan.weights_sha256("default")}}

    def up_to_date(provenance):
        (tmp_path / "one.json").write_text(json.dumps({"provenance": provenance}))
        return plan.up_to_date("one", f"{script} --option")

    assert up_to_date(made)
    other = {"code": "0" * 12} if change == "code" else {"weights_sha256": {"default.safetensors": "0" * 64}}
    assert not up_to_date(made | other)
    assert not plan.up_to_date("no such measurement", str(script))


def test_a_measurement_that_fails_stops_the_run(tmp_path):
    import run

    (tmp_path / "script.py").write_text("raise SystemExit(3)")
    with pytest.raises(subprocess.CalledProcessError):
        run.measure({"nothing": str(tmp_path / "script.py")}, 2, fresh=True)
