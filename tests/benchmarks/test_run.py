"""The run: every cell alone, nothing done twice, nothing lost, and the same numbers each time."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

CHEAP = ["zero", "cubic", "kriging", "true rate"]


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
    assert [c["method"] for c in done[:4]] == CHEAP  # in the order of the plan
    assert len(done) == 8 and len(sections) == 2
    for c in done:
        (scores,) = c["scores"].values()
        genes = next(s["about"]["genes"] for s in sections if s["section"] == c["section"])
        assert c["status"] == "done" and len(scores["pcc"]) == len(genes)
        assert c["cost"]["memory_mb"] > 50
        assert len(c["made"]["commit"]) in (7, 40)
    assert all(p == 0 for c in done if c["method"] == "zero" for p in next(iter(c["scores"].values()))["pcc"])
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
    assert "8 cells, 7 of them done" in capsys.readouterr().out
    run.main(command)
    assert [c["status"] for c in cells(tmp_path)[0]] == ["done"] * 8
    run.main(command)
    assert "8 cells, 8 of them done" in capsys.readouterr().out


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


def test_what_a_method_dies_of_is_its_result(cell):
    found = one(replace(cell, method="no such method"))
    assert found["status"] == "failed" and "no such method" in found["reason"]


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

def long(cell):
    try:
        print("started", flush=True)
        time.sleep(60)
    finally:
        print("cleaned up", flush=True)

run.measure_cell = long
run._into_file(None, Path({str(tmp_path)!r}) / "result.json")
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "started\n"
    process.terminate()
    assert process.communicate(timeout=30)[0] == "cleaned up\n"


def test_a_choice_of_nothing_is_refused(tmp_path):
    import run

    with pytest.raises(SystemExit, match="choose nothing"):
        run.main(["--tasks", "nonsense", "--output", str(tmp_path)])


def test_measurements_run_once_each_and_timings_have_all_cores(tmp_path, monkeypatch, capsys):
    import records
    import run

    monkeypatch.setattr(records, "RESULTS", tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    script = tmp_path / "script.py"
    script.write_text(
        "import json, os, pathlib, sys\n"
        "made = {'provenance': {}, 'threads': os.environ.get('OMP_NUM_THREADS', 'all')}\n"
        f"pathlib.Path({str(tmp_path)!r}, sys.argv[1] + '.json').write_text(json.dumps(made))\n"
    )
    run.measure({name: f"{script} {name}" for name in ("one", "two")}, 2, fresh=False)
    run.measure({"timed": f"{script} timed"}, 1, fresh=False)
    threads = {name: json.loads((tmp_path / f"{name}.json").read_text())["threads"] for name in ("one", "two", "timed")}
    assert threads == {"one": "1", "two": "1", "timed": "all"}
    (tmp_path / "two.json").unlink()
    capsys.readouterr()
    run.measure({name: f"{script} {name}" for name in ("one", "two")}, 2, fresh=False)
    assert (tmp_path / "two.json").exists() and "one: done" in capsys.readouterr().out


def test_a_measurement_that_fails_stops_the_run(tmp_path):
    import run

    (tmp_path / "script.py").write_text("raise SystemExit(3)")
    with pytest.raises(subprocess.CalledProcessError):
        run.measure({"nothing": str(tmp_path / "script.py")}, 2, fresh=True)
