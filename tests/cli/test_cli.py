"""What the command line passes on and what it says; the work itself is replaced by recorders."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from spatialdata import SpatialData, read_zarr
from spatialdata.models import TableModel
from typer.testing import CliRunner

import hadmst_sc
from hadmst_sc.cli import app
from hadmst_sc.pp import validate as real_validate
from hadmst_sc.section.errors import ContractError
from hadmst_sc.tl import reliability as real_reliability
from hadmst_sc.tl import superresolve as real_superresolve


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def put_module(monkeypatch, name: str, **members: object) -> None:
    module = ModuleType(f"hadmst_sc.{name}")
    vars(module).update(members)
    package, _, leaf = module.__name__.rpartition(".")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(sys.modules[package], leaf, module, raising=False)


def a_table(value: float, attrs: dict | None = None) -> SpatialData:
    table = TableModel.parse(ad.AnnData(np.full((2, 1), value, np.float32)))
    return SpatialData(tables={"superres_table": table}, attrs=attrs)


RESULT = {"hadmst_sc": {"superres": {"model": "closed form"}}}


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "in.zarr"
    a_table(0).write(path)
    return path


@pytest.fixture
def calls(monkeypatch):
    """Replaces `tl.superresolve`; holds the arguments of its calls."""
    seen: list[tuple] = []

    def superresolve(sdata, image_key, **options):
        seen.append((sdata, image_key, options))
        return a_table(7, RESULT) if options["copy"] else None

    put_module(monkeypatch, "tl", superresolve=superresolve)
    return seen


def test_importing_and_help_load_neither_torch_nor_spatialdata_nor_matplotlib():
    code = (
        "import sys; from hadmst_sc.cli import app; from typer.testing import CliRunner;"
        "assert CliRunner().invoke(app, ['superresolve', '--help']).exit_code == 0;"
        "print([m for m in ('torch', 'spatialdata', 'matplotlib', 'anndata') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_defaults_of_the_command_are_those_of_the_function(store, calls):
    assert run("superresolve", store, "he").exit_code == 0
    sdata, image_key, options = calls[0]
    assert (sdata.path, image_key) == (store, "he")
    parameters = inspect.signature(real_superresolve).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    for only_in_python in ("client", "features", "show_progress_bar"):
        del defaults[only_in_python]
    assert options == defaults


@pytest.mark.parametrize(("text", "genes"), [("A, B,C", ["A", "B", "C"]), ("50", 50), ("MT-ND1", ["MT-ND1"])])
def test_genes_are_names_or_a_number(store, calls, text, genes):
    run("superresolve", store, "he", "--genes", text)
    assert calls[0][2]["genes"] == genes


def test_several_images_are_a_list_and_keys_with_commas_are_one_per_section(store, calls):
    result = run("superresolve", store, "he_1", "he_2", "--shapes-key", "P1,P2", "--genes", "A,B", "--layer", "a,b")
    assert result.exit_code == 0 and "of 2 sections" in result.stdout
    _, images, options = calls[0]
    assert (images, options["shapes_key"], options["layer"]) == (["he_1", "he_2"], ["P1", "P2"], "a,b")
    assert (options["table_key"], options["genes"]) == ("table", ["A", "B"])
    run("superresolve", store, "he", "--shapes-key", "P1,P2")
    assert calls[1][1] == "he" and calls[1][2]["shapes_key"] == "P1,P2"


def test_model_none_is_the_closed_form(store, calls):
    run("superresolve", store, "he", "--model", "none")
    assert calls[0][2]["model"] is None


def test_obsm_key_is_passed_on(store, calls):
    run("superresolve", store, "he", "--obsm-key", "q05_cell_abundance_w_sf")
    assert calls[0][2]["obsm_key"] == "q05_cell_abundance_w_sf"


def test_output_receives_the_copy_and_the_input_is_left_alone(store, calls, tmp_path):
    out = tmp_path / "out.zarr"
    result = run("superresolve", store, "he", "--output", out)
    assert result.exit_code == 0 and calls[0][2]["copy"] is True
    assert read_zarr(out).tables["superres_table"].X.max() == 7
    assert read_zarr(store).tables["superres_table"].X.max() == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.zarr", "out.zarr"]


def test_output_is_replaced_only_when_asked(store, calls, tmp_path):
    out = tmp_path / "out.zarr"
    a_table(1, RESULT).write(out)
    refused = run("superresolve", store, "he", "--output", out)
    assert refused.exit_code == 2 and "--overwrite" in refused.stderr and not calls
    assert read_zarr(out).tables["superres_table"].X.max() == 1
    assert run("superresolve", store, "he", "--output", out, "--overwrite").exit_code == 0
    assert read_zarr(out).tables["superres_table"].X.max() == 7


def test_a_folder_that_is_no_store_is_never_replaced(store, calls, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("meow")
    result = run("superresolve", store, "he", "--output", tmp_path / "photos", "--overwrite")
    assert result.exit_code == 2 and not calls
    assert (tmp_path / "photos" / "cat.jpg").read_text() == "meow"


def test_a_store_without_a_result_is_never_replaced(tmp_path):
    from spatialdata import SpatialData

    from hadmst_sc.io.write import check_free

    SpatialData().write(tmp_path / "empty.zarr")
    with pytest.raises(ValueError, match="holds no result"):
        check_free(tmp_path / "empty.zarr", overwrite=True)


def test_output_inside_the_input_is_refused(store, calls):
    result = run("superresolve", store, "he", "--output", store / "images" / "x.zarr")
    assert result.exit_code == 2 and "neither inside the input" in result.stderr and not calls


@pytest.mark.parametrize("beside", ["table", "file", "no provenance", "zarr 2"])
def test_a_store_with_more_than_results_is_never_replaced(store, calls, tmp_path, beside):
    out = tmp_path / "out.zarr"
    sdata = a_table(1, None if beside == "no provenance" else RESULT)
    if beside == "table":
        sdata["table"] = sdata["superres_table"].copy()
    sdata.write(out)
    if beside == "file":
        (out / "notes.txt").write_text("mine")
    if beside == "zarr 2":
        (out / "zarr.json").rename(out / ".zgroup")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    result = run("superresolve", store, "he", "--output", out, "--overwrite")
    assert result.exit_code == 2 and "nothing but results" in result.stderr and not calls
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("around", ["itself", "parent", "link"])
def test_output_around_the_input_is_refused(store, calls, tmp_path, around):
    if around == "link":
        (tmp_path / "link.zarr").symlink_to(store)
    output = {"itself": store, "parent": tmp_path, "link": tmp_path / "link.zarr"}[around]
    (tmp_path / "zarr.json").write_text("{}")
    result = run("superresolve", store, "he", "--output", output, "--overwrite")
    assert result.exit_code == 2 and "neither inside the input nor above it" in result.stderr and not calls
    assert read_zarr(store).tables["superres_table"].X.max() == 0


@pytest.mark.parametrize("n_renames", [0, 1, 2])
def test_a_kill_while_the_store_takes_its_place_leaves_one_that_the_next_run_finds(
    store, calls, tmp_path, monkeypatch, n_renames
):
    class Killed(BaseException):
        pass

    out, rename, done = tmp_path / "out.zarr", os.rename, []
    a_table(1, RESULT).write(out)

    def limited(*given):
        if len(done) == n_renames:
            raise Killed
        done.append(given)
        rename(*given)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", limited)
        with pytest.raises(Killed) if n_renames < 2 else nullcontext():
            run("superresolve", store, "he", "--output", out, "--overwrite")
    refused = run("superresolve", store, "he", "--output", out)
    assert refused.exit_code == 2 and "--overwrite" in refused.stderr
    assert read_zarr(out).tables["superres_table"].X.max() == (7 if n_renames == 2 else 1)
    assert run("superresolve", store, "he", "--output", out, "--overwrite").exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.zarr", "out.zarr"]


def test_a_failed_write_leaves_the_old_store(store, calls, tmp_path, monkeypatch):
    out = tmp_path / "out.zarr"
    a_table(1, RESULT).write(out)

    def fail(self, path, **_):
        path.mkdir()
        raise OSError("disk full")

    monkeypatch.setattr(SpatialData, "write", fail)
    assert run("superresolve", store, "he", "--output", out, "--overwrite").exit_code == 2
    assert read_zarr(out).tables["superres_table"].X.max() == 1


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (KeyError("`image_key='x'` is missing"), "hadmst-sc: `image_key='x'` is missing\n"),
        (ValueError("`bin_um` needs"), "hadmst-sc: `bin_um` needs\n"),
        (ContractError("cannot pair", ["a: b.", "c: d."]), "hadmst-sc: cannot pair (2 problems):\n  a: b.\n  c: d.\n"),
    ],
)
def test_bad_input_is_said_without_a_traceback_and_ends_with_2(store, monkeypatch, error, text):
    def superresolve(*_, **__):
        raise error

    put_module(monkeypatch, "tl", superresolve=superresolve)
    result = run("superresolve", store, "he")
    assert (result.exit_code, result.stderr) == (2, text)
    assert run("--traceback", "superresolve", store, "he").exception is error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (TypeError("`genes` needs names"), 2),
        (PermissionError(13, "Permission denied", "/x"), 2),
        (IsADirectoryError(21, "Is a directory", "/x"), 2),
        (MemoryError("too large"), 2),
        (RecursionError("deep"), 2),
        (ZeroDivisionError("a mistake of ours"), 1),
        (MemoryError(), 2),
    ],
    ids=repr,
)
def test_every_error_is_a_line_and_a_status(store, monkeypatch, error, status):
    def superresolve(*_, **__):
        raise error

    put_module(monkeypatch, "tl", superresolve=superresolve)
    result = run("superresolve", store, "he")
    assert result.exit_code == status and result.stderr.startswith("hadmst-sc: ") and "Traceback" not in result.stderr
    assert ("--traceback" in result.stderr) == (status == 1 or not str(error))
    assert run("--traceback", "superresolve", store, "he").exception is error


def test_an_interrupt_ends_with_130(store, monkeypatch):
    def superresolve(*_, **__):
        raise KeyboardInterrupt

    put_module(monkeypatch, "tl", superresolve=superresolve)
    result = run("superresolve", store, "he")
    assert result.exit_code == 130 and result.stderr == "hadmst-sc: interrupted\n"


def test_a_closed_pipe_is_left_quietly(tmp_path):
    code = "import sys, hadmst_sc.cli as c; sys.argv = ['hadmst-sc', 'superresolve', '--help']; c.main()"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read() and process.wait() in (0, 1, 120)


def test_a_missing_store_is_a_usage_error(tmp_path):
    assert run("superresolve", tmp_path / "none.zarr", "he").exit_code == 2


def put_weights(monkeypatch, **members: object) -> None:
    defaults = {
        "bundled_models": lambda: ["default"],
        "load_model": lambda model, device: (model, device),
        "read_card": lambda model: f"card of {model}",
        "self_test": lambda model, card: 1e-7,
    }
    put_module(monkeypatch, "models.weights", **defaults | members)


@pytest.mark.parametrize(("ok", "status"), [(True, 0), (False, 1)])
def test_validate_prints_the_report_and_ends_with_its_verdict(store, monkeypatch, ok, status):
    seen = {}

    def validate(sdata, image_key, **options):
        seen.update(options, image_key=image_key)
        return SimpleNamespace(ok=ok)

    put_module(monkeypatch, "pp", validate=validate)
    result = run("validate", store, "he", "--genes", "3", "--no-align")
    assert result.exit_code == status and "ok=" in result.output
    defaults = {name: p.default for name, p in inspect.signature(real_validate).parameters.items()}
    del defaults["sdata"], defaults["show_progress_bar"]
    assert seen == defaults | {"image_key": "he", "genes": 3, "align": False}


@pytest.mark.parametrize("command", ["superresolve", "validate", "reliability"])
def test_spots_can_be_moved_to_the_image(store, monkeypatch, command):
    seen = []

    def called(sdata, image_key, **options):
        seen.append(options["align"])
        return SimpleNamespace(ok=True, sort_values=lambda *_, **__: pd.DataFrame({"reliability": [0.5]}))

    put_module(monkeypatch, "pp", validate=called)
    put_module(monkeypatch, "tl", superresolve=called, reliability=called)
    assert run(command, store, "he", "--align-spots").exit_code == 0 and seen == ["spots"]
    refused = run(command, store, "he", "--align-spots", "--no-align")
    assert refused.exit_code == 2 and "exclude" in refused.output and len(seen) == 1


def test_reliability_prints_the_most_reliable_gene_first(store, monkeypatch):
    seen = {}

    def reliability(sdata, image_key, **options):
        seen.update(options, image_key=image_key)
        return pd.DataFrame({"reliability": [0.25, 0.5]}, index=["A", "B"])

    put_module(monkeypatch, "tl", reliability=reliability)
    result = run("reliability", store, "he", "--controls", "--genes", "A,B", "--model", "none")
    assert result.exit_code == 0 and result.stdout.index("B") < result.stdout.index("A  ")
    assert (seen["image_key"], seen["controls"], seen["genes"], seen["model"]) == ("he", True, ["A", "B"], None)
    assert seen.keys() <= inspect.signature(real_reliability).parameters.keys()


def test_cells_are_not_counted_for_a_file_that_exists(store, monkeypatch, tmp_path):
    put_module(monkeypatch, "tl")  # has no `to_cells`
    (tmp_path / "cells.h5ad").write_text("mine")
    result = run("cells", store, "nuclei", tmp_path / "cells.h5ad")
    assert result.exit_code == 2 and "--overwrite" in result.stderr
    assert (tmp_path / "cells.h5ad").read_text() == "mine"


def test_doctor_says_how_far_the_model_deviates(monkeypatch):
    put_weights(monkeypatch)
    result = run("doctor", "--device", "cpu")
    assert result.exit_code == 0
    assert f"hadmst_sc    {hadmst_sc.__version__}" in result.stdout
    assert "default: ok, relative deviation 1.0e-07" in result.stdout


def test_doctor_tests_a_model_from_a_path_against_its_own_card(monkeypatch):
    seen: list[tuple] = []
    put_weights(monkeypatch, self_test=lambda *pair: seen.append(pair) or 0.0)
    assert run("doctor", "--device", "cpu").exit_code == 0
    assert run("doctor", "--device", "cpu", "--model", "my.safetensors").exit_code == 0
    assert seen == [(("default", "cpu"), None), (("my.safetensors", "cpu"), "card of my.safetensors")]


@pytest.mark.parametrize("step", ["load_model", "self_test"])
def test_doctor_fails_when_the_weights_do_not_load_or_deviate(monkeypatch, step):
    def fail(*_):
        raise ValueError("sha256 differs")

    put_weights(monkeypatch, **{step: fail})
    result = run("doctor", "--device", "cpu")
    assert result.exit_code == 1 and "sha256 differs" in result.stderr


@pytest.fixture
def training(monkeypatch):
    """Replaces the training loop; holds the arguments of its calls."""
    from hadmst_sc.train import loop

    seen: list[tuple] = []

    def train(config, *, output, shared, sections, resume):
        assert sections == {}  # none is in the configuration
        seen.append((config.steps, output, resume))
        output.mkdir(exist_ok=True)
        return loop.build_model(config)

    monkeypatch.setattr(loop, "train", train)
    monkeypatch.setattr(loop, "read_log", lambda output: [{"step": 1}])
    return seen


def test_train_reads_the_configuration_and_resumes_by_default(training, tmp_path):
    config, out = tmp_path / "c.toml", tmp_path / "a"
    config.write_text("steps = 3")
    assert run("train", config, "--out", out).exit_code == 0
    assert run("train", config, "--out", out, "--no-resume").exit_code == 0
    assert training == [(3, out, True), (3, out, False)]


def test_train_writes_weights_that_load_with_a_card_that_says_how_they_were_made(training, tmp_path):
    from hadmst_sc.models.weights import load_model, read_card

    config, weights = tmp_path / "c.toml", tmp_path / "mine.safetensors"
    config.write_text("steps = 3")
    assert run("train", config, "--out", tmp_path / "a", "--weights", weights).exit_code == 0
    assert load_model(weights).name == "mine"
    card = read_card(weights)
    assert card["training"]["steps"] == 3 and card["log"] == [{"step": 1}]


def test_dry_run_shows_what_would_be_trained_and_trains_nothing(training, tmp_path):
    (tmp_path / "c.toml").write_text("steps = 3\nsections = 2\ngenes = 5\ncrop = 32")
    result = run("train", tmp_path / "c.toml", "--dry-run")
    assert result.exit_code == 0 and training == [] and len(list(tmp_path.iterdir())) == 1
    assert '"steps": 3' in result.stdout and "3 of 2 sections × 5 genes × 32² bins" in result.stdout
    assert int(result.stdout.split("parameters")[1].split()[0].replace(",", "")) > 100_000


def test_an_unknown_setting_is_named(training, tmp_path):
    (tmp_path / "c.toml").write_text("stepz = 3")
    result = run("train", tmp_path / "c.toml")
    assert result.exit_code == 2 and "stepz" in result.stderr and not training


def test_version_is_the_packages():
    assert run("--version").stdout == f"{hadmst_sc.__version__}\n"


def test_benchmark_runs_a_script_of_the_checkout_and_passes_on_what_follows(tmp_path):
    received = tmp_path / "received"
    (tmp_path / "toy.py").write_text(
        f"import sys; open({str(received)!r}, 'w').write(' '.join(sys.argv[1:])); sys.exit(3)"
    )
    assert run("benchmark", "toy", "--folder", tmp_path, "--quick", "7").exit_code == 3
    assert received.read_text() == "--quick 7"
    (tmp_path / "toy.py").rename(tmp_path / "run.py")
    assert run("benchmark", "--folder", tmp_path, "--profile", "quick").exit_code == 3  # no name: the benchmark
    assert received.read_text() == "--profile quick"


def test_benchmark_without_a_checkout_says_where_it_looked(tmp_path):
    result = run("benchmark", "model", "--folder", tmp_path)
    assert result.exit_code == 2 and "checkout" in result.output and "model.py" in result.output
