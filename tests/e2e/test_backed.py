"""Backed objects: maps go to disk as they are made, a run that was cut short is continued, and never mixed."""

from __future__ import annotations

import errno
import io
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import dask
import dask.array as da
import numpy as np
import pytest
import spatialdata as sd

import hadmst_sc as hd
from hadmst_sc.inference import predict as _predict
from hadmst_sc.inference import workers as _work
from hadmst_sc.io import contents, elements
from hadmst_sc.io import maps as maps_module
from hadmst_sc.io import store as store_module
from hadmst_sc.io.maps import MapStore
from hadmst_sc.models import HadmstModel

_superresolve = import_module("hadmst_sc.tl.superresolve")  # the module: the package has the function of that name

IMAGE = "phantom_full_image"
SETTINGS = {"bin_um": 20.0, "batch_size": 2, "show_progress_bar": False}


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("template") / "section.zarr"
    hd.datasets.phantom(seed=1, n_genes=6, size_um=800.0).write(path)
    return path


@pytest.fixture(scope="module")
def reference(template) -> sd.SpatialData:
    """The result in memory."""
    return hd.tl.superresolve(sd.read_zarr(template), IMAGE, copy=True, **SETTINGS)


@pytest.fixture
def backed(template, tmp_path) -> sd.SpatialData:
    shutil.copytree(template, tmp_path / "section.zarr")
    return sd.read_zarr(tmp_path / "section.zarr")


@pytest.fixture(autouse=True)
def _several_blocks(monkeypatch) -> None:
    """As with more genes than a chunk of the table has."""
    monkeypatch.setattr(elements, "_genes_of_a_chunk", lambda *_: 4)


class Interrupted(Exception):
    """Stands for Ctrl-C: pytest would stop at a real one."""


def cut_short(monkeypatch, after: int) -> None:
    write, calls = MapStore.write, []

    def limited(self, *args) -> None:
        if len(calls) == after:
            raise Interrupted
        calls.append(args)
        write(self, *args)

    monkeypatch.setattr(MapStore, "write", limited)


def counted(monkeypatch) -> list[int]:
    """Genes that are computed from here on; the gate, which has none that are kept, leaves consistency out."""
    genes, predict_chunk = [], _work.predict_within_memory

    def counting(section, chunk):
        if section.settings.consistency != "off":
            genes.extend(chunk.tolist())
        return predict_chunk(section, chunk)

    monkeypatch.setattr(_work, "predict_within_memory", counting)
    return genes


def check_same(sdata: sd.SpatialData, reference: sd.SpatialData) -> None:
    mine, other = sdata["superres_table"], reference["superres_table"]
    for ours, theirs in (
        (sdata["superres"].data, reference["superres"].data),
        (sdata["superres_std"].data, reference["superres_std"].data),
        (mine.X, other.X),
        (mine.layers["std"], other.layers["std"]),
    ):
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
        assert np.nanmax(np.abs(ours - theirs)) <= 1e-5 * np.nanmax(np.abs(theirs))
    for column in ("spot_residual", "loo_r2", "mean_counts_per_bin"):
        np.testing.assert_allclose(mine.var[column], other.var[column], rtol=1e-4)


def test_a_backed_run_gives_what_memory_gives_and_leaves_only_the_store(backed, reference, tmp_path):
    hd.tl.superresolve(backed, IMAGE, **SETTINGS)
    check_same(backed, reference)
    check_same(sd.read_zarr(tmp_path / "section.zarr"), reference)
    assert isinstance(backed["superres_table"].X, np.ndarray)
    assert [path.name for path in tmp_path.iterdir()] == ["section.zarr"]


def test_a_map_is_written_while_the_next_is_made(backed, reference, monkeypatch):
    write, predict_chunk = MapStore.write, _work.predict_within_memory
    begun = {gene: threading.Event() for gene in (2, 4)}

    def waiting(self, genes, *more) -> None:
        after = begun.get(int(genes[0]) + 2)
        assert after is None or after.wait(60)
        write(self, genes, *more)

    def telling(section, chunk):
        if section.settings.consistency != "off" and int(chunk[0]) in begun:
            begun[int(chunk[0])].set()
        return predict_chunk(section, chunk)

    monkeypatch.setattr(MapStore, "write", waiting)
    monkeypatch.setattr(_work, "predict_within_memory", telling)
    hd.tl.superresolve(backed, IMAGE, **SETTINGS)
    check_same(backed, reference)


def no_links(*_) -> None:
    raise OSError("no links on this file system")


@pytest.mark.parametrize("how", ["linked", "copied"])
def test_maps_on_disk_become_the_images(backed, reference, tmp_path, monkeypatch, how):
    if how == "copied":
        without = SimpleNamespace(**vars(os) | {"link": no_links})
        monkeypatch.setattr(maps_module, "os", without)
    monkeypatch.setattr(MapStore, "remove", lambda self: None)
    hd.tl.superresolve(backed, IMAGE, **SETTINGS)
    check_same(backed, reference)
    made = list((tmp_path / "section.zarr" / "images").glob("superres*/*/c/*/*/*"))
    assert len(made) == 2 * 6
    assert {file.stat().st_nlink for file in made} == ({2} if how == "linked" else {1})


def test_a_run_cut_short_is_continued_where_it_stopped(backed, reference, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        cut_short(patch, after=2)
        with pytest.raises(Interrupted):
            hd.tl.superresolve(backed, IMAGE, **SETTINGS)
    assert "superres" not in backed
    genes = counted(monkeypatch)
    with caplog.at_level(logging.INFO, "hadmst_sc"):
        hd.tl.superresolve(backed, IMAGE, **SETTINGS | {"batch_size": 1})
    assert genes == [4, 5]
    assert "4 of 6 genes are done" in caplog.text
    check_same(backed, reference)


@pytest.mark.parametrize("change", [{"align": False}, {"consistency": "hard"}, {"bin_um": 25.0}, {"gate": False}])
def test_a_run_with_other_parameters_is_not_continued(backed, template, monkeypatch, caplog, change):
    with monkeypatch.context() as patch:
        cut_short(patch, after=2)
        with pytest.raises(Interrupted):
            hd.tl.superresolve(backed, IMAGE, **SETTINGS)
    genes = counted(monkeypatch)
    hd.tl.superresolve(backed, IMAGE, **SETTINGS | change)
    assert "other parameters or input" in caplog.text
    assert set(genes) == set(range(6))
    check_same(backed, hd.tl.superresolve(sd.read_zarr(template), IMAGE, copy=True, **SETTINGS | change))


def test_a_run_on_other_counts_is_not_continued(backed, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        cut_short(patch, after=2)
        with pytest.raises(Interrupted):
            hd.tl.superresolve(backed, IMAGE, **SETTINGS)
    backed["table"].X = backed["table"].X * 2
    hd.tl.superresolve(backed, IMAGE, **SETTINGS)
    assert "other parameters or input" in caplog.text


def test_a_full_disk_leaves_nothing_beside_the_store(backed, tmp_path, monkeypatch):
    write, calls = MapStore.write, []

    def full(self, *given) -> None:
        if calls:
            raise OSError(errno.ENOSPC, "No space left on device")
        calls.append(given)
        write(self, *given)

    monkeypatch.setattr(MapStore, "write", full)
    with pytest.raises(OSError, match=r"`sdata` needs a store that can be written.*Free some space and call again"):
        hd.tl.superresolve(backed, IMAGE, **SETTINGS)
    assert "superres" not in backed and [path.name for path in tmp_path.iterdir()] == ["section.zarr"]


@pytest.mark.parametrize("how", ["deleted", "renamed"])
def test_a_store_that_goes_while_the_run_computes_is_named(backed, tmp_path, monkeypatch, how):
    path, predict = tmp_path / "section.zarr", _superresolve.predict

    def gone(*given, **more):
        found = predict(*given, **more)
        shutil.rmtree(path) if how == "deleted" else path.rename(tmp_path / "moved.zarr")
        return found

    monkeypatch.setattr(_superresolve, "predict", gone)
    with pytest.raises(OSError, match=r"section\.zarr was deleted or renamed.*spatialdata\.read_zarr"):
        hd.tl.superresolve(backed, IMAGE, **SETTINGS | {"model": None})
    assert [path.name for path in tmp_path.iterdir()] == ([] if how == "deleted" else ["moved.zarr"])


@pytest.mark.parametrize("stderr", ["none", "closed"])
def test_a_run_works_without_a_place_to_show_its_progress(backed, tmp_path, monkeypatch, stderr):
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stderr", None if stderr == "none" else stream)
    hd.tl.superresolve(backed, IMAGE, bin_um=20.0, model=None, genes=2)
    monkeypatch.undo()
    assert sd.read_zarr(tmp_path / "section.zarr")["superres"].shape[0] == 2


def test_scratch_with_links_in_it_is_not_continued(backed, tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        cut_short(patch, after=2)
        with pytest.raises(Interrupted):
            hd.tl.superresolve(backed, IMAGE, **SETTINGS)
    chunks = store_module.scratch(tmp_path / "section.zarr", "superres") / "maps.zarr" / "mean" / "c"
    shutil.move(chunks, tmp_path / "elsewhere")
    chunks.symlink_to(tmp_path / "elsewhere")
    before = {path: path.read_bytes() for path in (tmp_path / "elsewhere").rglob("*") if path.is_file()}
    hd.tl.superresolve(backed, IMAGE, **SETTINGS | {"model": None})
    assert {path: path.read_bytes() for path in (tmp_path / "elsewhere").rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "section.zarr"]


def test_an_error_before_the_first_gene_leaves_nothing(backed, tmp_path):
    with pytest.raises(ValueError, match="batch_size"):
        hd.tl.superresolve(backed, IMAGE, batch_size=-1)
    assert [path.name for path in tmp_path.iterdir()] == ["section.zarr"]


def test_a_process_that_is_killed_can_be_continued_by_another(backed, reference, tmp_path, monkeypatch):
    code = (
        "import time, spatialdata as sd, hadmst_sc as hd\n"
        "from hadmst_sc.io.maps import MapStore\n"
        "write = MapStore.write\n"
        "MapStore.write = lambda *given: (write(*given), time.sleep(1))\n"  # so that there is time to kill it
        f"hd.tl.superresolve(sd.read_zarr({str(tmp_path / 'section.zarr')!r}), {IMAGE!r}, bin_um=20, "
        "batch_size=1, show_progress_bar=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    maps = MapStore(store_module.scratch(tmp_path / "section.zarr", "superres"))
    while process.poll() is None and not maps.finished:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    n_done = len(maps.finished)
    assert 0 < n_done < 6
    genes = counted(monkeypatch)
    hd.tl.superresolve(backed, IMAGE, **SETTINGS)
    assert len(genes) == 6 - n_done
    check_same(backed, reference)


def test_large_tables_come_back_lazily(backed, reference, monkeypatch):
    monkeypatch.setattr(contents, "MAX_LOADED", 1000)
    hd.tl.superresolve(backed, IMAGE, **SETTINGS)
    table = backed["superres_table"]
    assert isinstance(table.X, da.Array) and isinstance(table.layers["std"], da.Array)
    check_same(backed, reference)


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def test_workers_import_while_the_image_is_registered(backed, reference, cluster, monkeypatch):
    cluster.restart()
    prepare, module = _predict.prepare, "hadmst_sc.inference.chunk"

    def waiting(*given, **more):
        deadline = time.monotonic() + 60
        while not all(imported := cluster.run(lambda: module in sys.modules).values()):
            assert time.monotonic() < deadline, imported
            time.sleep(0.1)
        return prepare(*given, **more)

    assert not any(cluster.run(lambda: module in sys.modules).values())
    monkeypatch.setattr(_predict, "prepare", waiting)
    hd.tl.superresolve(backed, IMAGE, client=cluster, **SETTINGS)
    check_same(backed, reference)


def test_workers_write_for_themselves_and_this_process_the_rest(backed, reference, cluster, monkeypatch):
    write, by = _superresolve.write_prediction, []

    def writing(*given, **more) -> None:
        by.append(dask.base.get_scheduler())
        write(*given, **more)

    monkeypatch.setattr(_superresolve, "write_prediction", writing)
    hd.tl.superresolve(backed, IMAGE, client=cluster, **SETTINGS)
    check_same(backed, reference)
    assert by == [dask.threaded.get]  # and not that of the client, which takes everything to its workers
    assert dask.base.get_scheduler() == cluster.get


@pytest.mark.parametrize(
    ("n", "workers", "sizes"), [(50, 2, {3, 4}), (10, 2, {2, 3}), (6, 2, {3}), (3, 8, {1}), (5, 0, {2, 3})]
)
def test_tasks_are_alike_and_as_many_for_each_worker(n, workers, sizes):
    chunks = [np.array([i]) for i in range(n)]
    tasks = _work.tasks_of(chunks, workers)
    assert [chunk for task in tasks for chunk in task] == chunks
    assert {len(task) for task in tasks} == sizes and max(sizes) <= _work.CHUNKS_PER_TASK
    assert len(tasks) % max(1, workers) == 0 or len(tasks) == n
    # Sent out in turn, they are the same work for each worker, but for one chunk.
    of_worker = [sum(map(len, tasks[i :: max(1, workers)])) for i in range(max(1, workers))]
    assert max(of_worker) - min(of_worker) <= 1
    assert _work.tasks_of([], workers) == []


def test_the_network_runs_on_the_workers_alone(template, cluster, monkeypatch):
    """The gate's part too: on a cluster this process may have no processor to spare."""

    def elsewhere(*_) -> None:
        raise AssertionError("the network was evaluated in this process")

    monkeypatch.setattr(HadmstModel, "network", elsewhere)
    obs = hd.io.read_observation(sd.read_zarr(template), IMAGE, bin_um=20.0)
    made = hd.tl.predict(obs, client=cluster)
    assert made.provenance["gate"]["n_spots"] > 0 and made.std.any()


def test_a_worker_that_dies_is_survived(backed, reference, cluster, tmp_path):
    maps = MapStore(store_module.scratch(tmp_path / "section.zarr", "superres"))
    victim = next(iter(cluster.run(os.getpid).values()))

    def kill() -> None:
        while not maps.finished:
            time.sleep(0.02)
        os.kill(victim, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    hd.tl.superresolve(backed, IMAGE, client=cluster, **SETTINGS | {"batch_size": 1})
    killer.join()
    check_same(backed, reference)
