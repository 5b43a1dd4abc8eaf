"""A resumed run repeats no stage that took long, and gives the same bits; Ctrl-C says what is kept."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import spatialdata as sd

import hadmst_sc as hd
from hadmst_sc.alignment.record import Alignment
from hadmst_sc.inference import predict as predict_module
from hadmst_sc.inference import prepare as prepare_module
from hadmst_sc.io.maps import MapStore
from hadmst_sc.io.store import scratch

IMAGE = "phantom_full_image"
SETTINGS = {"bin_um": 20.0, "batch_size": 2, "show_progress_bar": False}
STAGES = ["distilled.npz", "gate.npz", "registration.npz"]
COSTLY = {
    "registration": (prepare_module, "estimate_alignment"),
    "features of the image": (prepare_module, "he_features"),
    "gate": (predict_module, "fit_gate"),
    "distillation": (predict_module, "components"),
    "metagenes": (predict_module, "by_metagenes"),
}


def run(path: Path, **more) -> sd.SpatialData:
    sdata = sd.read_zarr(path)
    hd.tl.superresolve(sdata, IMAGE, **SETTINGS | more)
    return sdata


def interrupt(monkeypatch, path: Path, after: int, **more) -> None:
    """Ctrl-C when so many chunks are written."""
    write, calls = MapStore.write, []

    def limited(self, *given) -> None:
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(given)
        write(self, *given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MapStore, "write", limited)
        run(path, **more)


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """Costly stages that are computed from here on."""
    seen = []
    prepare_module._last.clear()
    for name, (module, function) in COSTLY.items():
        plain = getattr(module, function)
        monkeypatch.setattr(
            module, function, lambda *given, name=name, plain=plain, **how: (seen.append(name), plain(*given, **how))[1]
        )
    return seen


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("template") / "section.zarr"
    hd.datasets.phantom(seed=1, n_genes=6, size_um=800.0, misregistration_um=(30.0, -20.0)).write(path)
    return path


@pytest.fixture(scope="module")
def whole(template, tmp_path_factory) -> sd.SpatialData:
    """The result of a run without a break."""
    folder = shutil.copytree(template.parent, tmp_path_factory.mktemp("whole") / "there")
    return run(folder / "section.zarr")


@pytest.fixture(scope="module")
def broken(template, tmp_path_factory) -> Path:
    """A folder with a store, and what a run left that was interrupted after four of six genes."""
    folder = shutil.copytree(template.parent, tmp_path_factory.mktemp("broken") / "there")
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, folder / "section.zarr", after=2)
    return folder


@pytest.fixture
def store(broken, tmp_path) -> Path:
    return shutil.copytree(broken, tmp_path / "there") / "section.zarr"


def check_identical(sdata: sd.SpatialData, whole: sd.SpatialData) -> None:
    mine, other = sdata["superres_table"], whole["superres_table"]
    for ours, theirs in (
        (sdata["superres"].data, whole["superres"].data),
        (sdata["superres_std"].data, whole["superres_std"].data),
        (mine.X, other.X),
    ):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    assert mine.var.equals(other.var)
    ours, theirs = (
        {k: v for k, v in one.uns["hadmst_sc"].items() if k != "date" and not k.startswith("seconds")}
        for one in (mine, other)
    )
    assert repr(ours) == repr(theirs)


def test_a_resumed_run_repeats_no_costly_stage_and_gives_the_same_bits(store, whole, calls):
    assert sorted(file.name for file in (scratch(store, "superres") / "stages").iterdir()) == STAGES
    sdata = run(store)
    assert calls == []
    check_identical(sdata, whole)
    assert [path.name for path in store.parent.iterdir()] == ["section.zarr"]


def test_a_run_interrupted_before_the_genes_repeats_only_what_was_not_finished(
    template, whole, calls, tmp_path, monkeypatch, capsys
):
    store = shutil.copytree(template, tmp_path / "section.zarr")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(predict_module, "fit_gate", interrupted)
        run(store)
    assert "0 finished genes" in capsys.readouterr().err
    calls.clear()
    sdata = run(store)
    assert "registration" not in calls and calls.count("gate") == 1
    check_identical(sdata, whole)


def test_a_damaged_stage_is_computed_again_and_the_others_are_not(store, whole, calls, caplog):
    file = scratch(store, "superres") / "stages" / "distilled.npz"
    file.write_bytes(file.read_bytes()[:-1000])
    sdata = run(store)
    assert "distilled.npz is ignored, and computed again" in caplog.text
    assert calls == ["features of the image", "distillation"]
    check_identical(sdata, whole)


def test_metagenes_are_not_computed_again(template, calls, tmp_path, monkeypatch):
    how = {"n_metagenes": 3, "gate": False, "align": False}
    first, second = (shutil.copytree(template, tmp_path / name / "section.zarr") for name in ("first", "second"))
    reference = run(first, **how)
    interrupt(monkeypatch, second, after=2, **how)
    calls.clear()
    sdata = run(second, **how)
    assert calls == []
    check_identical(sdata, reference)


def test_a_check_and_the_run_after_it_register_once(template, whole, calls, tmp_path):
    store = shutil.copytree(template, tmp_path / "section.zarr")
    report = hd.pp.validate(sd.read_zarr(store), IMAGE, bin_um=20.0)
    sdata = run(store)
    assert calls.count("registration") == 1
    assert Alignment.from_record(sdata["superres_table"].uns["hadmst_sc"]["registration"]) == report.alignment
    check_identical(sdata, whole)


def test_ctrl_c_says_what_is_kept_and_where(template, tmp_path, monkeypatch, capsys):
    store = shutil.copytree(template, tmp_path / "section.zarr")
    interrupt(monkeypatch, store, after=1, model=None, align=False)
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("interrupted")]
    folder = scratch(store, "superres")
    assert f"2 finished genes are kept in {folder}. The same call resumes from there" in line and folder.is_dir()


def test_ctrl_c_says_that_nothing_is_kept_without_a_store(template, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(import_module("hadmst_sc.tl.superresolve"), "predict", interrupted)
    with pytest.raises(KeyboardInterrupt):
        hd.tl.superresolve(sd.read_zarr(template), IMAGE, copy=True, **SETTINGS)
    err = capsys.readouterr().err
    assert "interrupted: nothing is kept" in err and "sdata.write('section.zarr')" in err


def test_the_command_line_ends_with_130_and_can_be_called_again(template, tmp_path):
    store = shutil.copytree(template, tmp_path / "section.zarr")
    code = (
        "import signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "from hadmst_sc.io.maps import MapStore\n"
        "write = MapStore.write\n"
        "MapStore.write = lambda *given: (write(*given), time.sleep(2))\n"  # so that there is time to interrupt it
        "from hadmst_sc.cli import main\n"
        "main()"
    )
    command = [
        "superresolve",
        str(store),
        IMAGE,
        "--bin-um",
        "20",
        "--model",
        "none",
        "--no-align",
        "--batch-size",
        "1",
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *command], stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    maps = MapStore(scratch(store, "superres"))
    while process.poll() is None and not maps.finished:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "are kept in" in err and "hadmst-sc: interrupted" in err and "Traceback" not in err
    assert maps.finished
