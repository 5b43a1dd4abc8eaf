"""Scale: what is compared with what, from runs as they are recorded; sections that are mirrored; bare convolutions."""

from __future__ import annotations

import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "scale"


@pytest.fixture(scope="module")
def scale():
    sys.path.insert(0, str(FOLDER))
    spec = importlib.util.spec_from_file_location("scale_main", FOLDER / "__main__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_of(seconds: float, genes: int, bins: int = 58_000, **more) -> dict:
    return {
        "command": f"--genes {genes}", "bins": bins, "genes": genes, "seconds": seconds, "peak_gb": 1.5,
        "network_seconds": 0.7 * seconds, "evaluations": 5 * genes, "metagene_loss": "none",
    } | more  # fmt: skip


def test_runs_of_other_code_are_done_again(scale, tmp_path, monkeypatch):
    import json

    started = []
    monkeypatch.setattr(scale, "RUNS", {"50 genes": "--genes 50", "100 genes": "--genes 100"})
    monkeypatch.setattr(scale, "in_own_process", lambda of: started.append(of) or run_of(9.0, int(of[1])))
    monkeypatch.setattr(scale, "throughput", lambda: {"network_gflops": 60.0, "bare_gflops": 80.0, "share": 0.75})
    monkeypatch.setattr(scale, "compiled", dict)
    monkeypatch.setattr(scale, "two_over_one", lambda: 1.9)
    monkeypatch.setattr(scale.records, "_code_of_script", lambda: "of today")
    for _ in range(2):
        scale.main(["--output", str(tmp_path)])
    assert started == [["--genes", "50"], ["--genes", "100"]]
    record = json.loads((tmp_path / "scale.json").read_text())
    record["runs"]["50 genes"]["code"] = "of yesterday"
    (tmp_path / "scale.json").write_text(json.dumps(record))
    scale.main(["--output", str(tmp_path)])
    assert started[2:] == [["--genes", "50"]]
    whole = json.loads((tmp_path / "scale.json").read_text())
    record["runs"]["100 genes"]["code"] = "of yesterday"
    (tmp_path / "scale.json").write_text(json.dumps(record))
    scale.main(["--output", str(tmp_path), "--runs", "50 genes"])
    half = json.loads((tmp_path / "scale.json").read_text())
    assert whole["provenance"]["code"] == "of today" and half["provenance"]["code"] == ""  # half of it is old


def test_what_lies_beside_a_script_belongs_to_its_code(scale):
    import sources

    names = {path.name for path in sources.closure(FOLDER / "__main__.py")}
    assert {"once.py", "throughput.py", "superresolve.py"} <= names


def record_of(scale, runs: dict) -> dict:
    growth = {curve: scale.slope(runs, *of) for curve, of in scale.CURVES.items()}
    return {"throughput": {"network_gflops": 60.0, "bare_gflops": 80.0, "share": 0.75}, "runs": runs, "growth": growth}


def test_an_exponent_is_that_of_the_runs(scale):
    names = scale.CURVES["genes, one by one"][1]
    runs = {name: run_of(3.0 * n**1.2, n) for name, n in zip(names, (50, 100, 200, 400, 1597), strict=True)}
    assert scale.slope(runs, *scale.CURVES["genes, one by one"]) == pytest.approx(1.2)
    assert scale.slope(dict(list(runs.items())[:2]), *scale.CURVES["genes, one by one"]) is None


def test_figures_are_asked_beside_measured(scale):
    runs = {scale.FULL: run_of(130.0, 200), scale.EVERY: run_of(190.0, 1597, metagene_loss=0.008)}
    runs |= {"200 genes, metagenes": run_of(90.0, 200), "2,000 genes, metagenes": run_of(220.0, 2000, peak_gb=1.6)}
    one, two = scale.PAIRS["400 genes"]
    runs |= {one: run_of(200.0, 400), two: run_of(110.0, 400, largest_difference=2e-7)}
    runs |= {scale.TESLA: run_of(390.0, 200), scale.CELLS: run_of(156.0, 200), scale.LARGEST: run_of(300.0, 18000)}
    measured = {row[0]: row[2] for row in scale.figures(record_of(scale, runs))}
    assert measured[scale.FULL] == "130 s, 1.50 GB"
    assert measured[f"{scale.CELLS}: time over that without"] == "1.20"
    assert measured[scale.LARGEST] == "300 s, 1.50 GB"
    assert measured["1,597 genes by metagenes, over 200 one by one"].startswith("1.46; deviance at held-out spots +0.8")
    assert measured["peak memory from 200 to 2,000 genes"] == "+7%"
    assert measured[f"time of TESLA per gene and bin over that of: {scale.FULL}"] == "3.0"
    assert measured[f"time of TESLA per gene and bin over that of: {scale.EVERY}"] == "16.4"
    assert measured["two Dask workers over one, 400 genes"] == "1.82, maps differ by at most 2e-07"
    assert not any("workers" in figure and "200 genes" in figure for figure in measured)


def test_the_page_has_every_run_and_names_failures(scale):
    runs = {scale.FULL: run_of(130.0, 200), scale.EVERY: {"command": "--genes 1597", "failed": ["MemoryError"]}}
    made = {"command": "c", "commit": "0" * 40, "uncommitted_changes": False, "machine": "m", "threads": "all"}
    page = scale.render(record_of(scale, runs) | {"provenance": made | {"versions": {"python": "3"}}})
    assert "MemoryError" in page and "| full slide, 200 genes " in page


def test_maps_are_compared_gene_by_gene(scale, tmp_path):
    maps = np.ones((2, 3, 3), np.float32) * np.array([1, 100], np.float32)[:, None, None]
    np.save(tmp_path / "a.npy", maps)
    maps[0, 1, 1] += 0.5
    np.save(tmp_path / "b.npy", maps)
    assert scale.difference(tmp_path / "a.npy", tmp_path / "b.npy") == pytest.approx(0.5)


def test_a_timed_model_computes_the_same_and_counts(scale):
    from frame import with_weights
    from once import SPENT, TimedModel

    from hadmst_sc import tl
    from hadmst_sc.models.weights import load_model
    from hadmst_sc.phantom.simulate import simulate

    obs = simulate(930_010, size_um=640.0, n_genes=2).observation
    plain = tl.predict(obs, gate=False)
    assert SPENT == {"seconds": 0.0, "evaluations": 0}
    timed = tl.predict(obs, model=with_weights(TimedModel, load_model("default")), gate=False)
    np.testing.assert_array_equal(timed.mean, plain.mean)
    assert SPENT["evaluations"] == 2 and SPENT["seconds"] > 0
    assert timed.provenance["model_sha256"] == plain.provenance["model_sha256"]


def test_the_network_is_slower_than_its_convolutions_and_not_much(scale, monkeypatch):
    import throughput

    monkeypatch.setattr(throughput, "SIDE", 96)
    found = throughput.throughput()
    assert found["bare_gflops"] > 0 and 0.2 < found["share"] < 1.3


def test_two_processes_do_no_more_than_twice_what_one_does(scale, monkeypatch):
    import throughput

    monkeypatch.setattr(throughput, "ProcessPoolExecutor", lambda n, context: ThreadPoolExecutor(n))
    monkeypatch.setattr(throughput, "evaluations", lambda seconds: seconds)
    assert throughput.two_over_one(3.0) == 2.0


def test_a_mirrored_section_lies_on_its_image(scale, data_dir):
    from sections import SECTION, mirrored

    one, four = mirrored(1, 30), mirrored(2, 2000)
    height, width = one[f"{SECTION}_full_image"]["scale0"]["image"].shape[1:]
    assert four[f"{SECTION}_full_image"]["scale0"]["image"].shape[1:] == (2 * height, 2 * width)
    n = one["table"].n_obs
    assert four["table"].n_obs == 4 * n and four["table"].var_names.is_unique
    x, y = four["table"].obsm["spatial"][n : 2 * n].T  # the tile to the right
    np.testing.assert_allclose(x, 2 * width - one["table"].obsm["spatial"][:, 0])
    np.testing.assert_allclose(y, one["table"].obsm["spatial"][:, 1])
    assert (four["table"].X[:n, :30] != one["table"].X).nnz == 0
