"""A cluster may lose its workers at any time: all tasks are done, or one error names `client`; nothing waits on."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import closing

import dask
import numpy as np
import pytest
import spatialdata as sd

import hadmst_sc as hd
from hadmst_sc.inference import workers as _cluster
from hadmst_sc.inference.workers import SETTING, Cluster
from hadmst_sc.io.maps import MapStore
from hadmst_sc.io.store import scratch

distributed = pytest.importorskip("distributed")

IMAGE = "phantom_full_image"
SETTINGS = {"bin_um": 20.0, "model": None, "align": False, "batch_size": 1, "show_progress_bar": False}


@pytest.fixture
def here():
    """A cluster in threads of this process, and a client."""
    with (
        distributed.LocalCluster(n_workers=1, processes=False, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def processes():
    """Two workers that can be killed; a nanny starts each anew."""
    how = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**how) as cluster, distributed.Client(cluster) as client:
        yield client


@pytest.fixture
def sdata():
    return hd.datasets.phantom(n_genes=4, size_um=600.0)


@pytest.fixture
def backed(sdata, tmp_path):
    sdata.write(tmp_path / "section.zarr")
    return sd.read_zarr(tmp_path / "section.zarr")


def squares(seconds: float = 0.0):
    """A task; made in a function, so that workers need not import this file."""

    def square(shared, number):
        time.sleep(seconds)
        return shared * number**2

    return square


def kill(client, how_many: int) -> None:
    for pid in list(client.run(os.getpid).values())[:how_many]:
        os.kill(pid, signal.SIGKILL)


def on_scheduler(client) -> int:
    """How many tasks and data the scheduler still has."""
    deadline = time.monotonic() + 10
    while (n := client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.05)
    return n


def test_every_task_is_done_and_nothing_is_left_on_the_scheduler(processes):
    assert sorted(Cluster(processes).run(squares(), 10, range(5))) == [(i, 10 * i**2) for i in range(5)]
    assert on_scheduler(processes) == 0


@pytest.mark.parametrize(
    ("how_many", "after"), [(2, 0), (2, 2), (1, 5)], ids=["all at the start", "all in the middle", "one at the end"]
)
def test_workers_that_die_at_any_time_cost_no_result(processes, after, how_many):
    done = []
    if not after:
        kill(processes, how_many)
    for pair in Cluster(processes).run(squares(0.1), 10, range(6)):
        done.append(pair)
        if len(done) == after:
            kill(processes, how_many)
    assert sorted(done) == [(i, 10 * i**2) for i in range(6)]
    assert on_scheduler(processes) == 0


def test_a_restart_of_the_cluster_costs_no_result(processes):
    done = []
    for pair in Cluster(processes).run(squares(0.05), 1, range(5)):
        done.append(pair)
        if len(done) == 2:
            processes.restart()
    assert sorted(done) == [(i, i**2) for i in range(5)]


def test_tasks_that_kill_every_worker_end_in_one_error(processes):
    def fatal(shared, number):
        os._exit(1)

    with pytest.raises(RuntimeError, match=r"^`client` needs workers that stay alive.*`memory_limit=`.*`client=None`"):
        list(Cluster(processes).run(fatal, None, range(2)))
    assert on_scheduler(processes) == 0


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ModuleNotFoundError("No module named 'hadmst_sc'"), RuntimeError, r"^`client` needs workers that can do this"),
        (PermissionError("read-only"), RuntimeError, r"^`client` needs workers that can do this.*access to the store"),
        (ValueError("`device='cuda'` is not here"), ValueError, r"^`device='cuda'` is not here$"),
        (MemoryError("Pass a larger `bin_um=`"), MemoryError, r"^Pass a larger `bin_um=`$"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_fails_on_a_worker_is_one_named_error(here, error, kind, text):
    def failing(shared, number):
        raise error

    with pytest.raises(kind, match=text):
        list(Cluster(here).run(failing, None, range(3)))
    assert on_scheduler(here) == 0


def test_who_stops_listening_leaves_nothing_on_the_scheduler(here):
    with closing(Cluster(here).run(squares(0.05), 1, range(20))) as results:
        next(results)
    assert on_scheduler(here) == 0


@pytest.mark.parametrize("end", ["client", "cluster", "scheduler"])
def test_a_cluster_that_is_closed_in_mid_run_is_one_error(end):
    cluster = distributed.LocalCluster(n_workers=1, processes=False, threads_per_worker=1, dashboard_address=None)
    with cluster, distributed.Client(cluster, timeout=2) as client:
        closes = {"client": client.close, "cluster": cluster.close, "scheduler": client.shutdown}[end]
        results = Cluster(client).run(squares(0.2), 1, range(100))
        next(results)
        closer = threading.Thread(target=closes)
        closer.start()
        with pytest.raises(RuntimeError, match=r"^`client` needs (an open connection|a worker)"):
            list(results)
        closer.join()


def test_a_cluster_scaled_to_nothing_in_mid_run_is_one_error(here, monkeypatch):
    monkeypatch.setattr(_cluster, "LOOK", 0.1)
    with dask.config.set({SETTING: "1 s"}):
        results = Cluster(here).run(squares(0.2), 1, range(100))
    next(results)
    here.cluster.scale(0)
    with pytest.raises(RuntimeError, match=r"^`client` needs a worker that takes tasks, but for 1 s it had none"):
        list(results)


@pytest.mark.parametrize("backed_by_store", [False, True])
def test_a_cluster_without_workers_is_one_error_and_the_section_as_it_was(sdata, backed, backed_by_store):
    """The image is read here, though the client is the default one for all that is lazy."""
    section = backed if backed_by_store else sdata
    before = [name for _, name, _ in section.gen_elements()]
    cluster = distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=None)
    with cluster, distributed.Client(cluster) as client, dask.config.set({SETTING: "1 s"}):
        with pytest.raises(RuntimeError, match=r"needs a worker that takes tasks, but for 1 s it had none"):
            hd.tl.superresolve(section, IMAGE, client=client, **SETTINGS)
        assert on_scheduler(client) == 0
    assert [name for _, name, _ in section.gen_elements()] == before


def test_a_closed_client_is_named_at_once(sdata):
    with distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster:
        client = distributed.Client(cluster)
        client.close()
        with pytest.raises(RuntimeError, match=r"^`client` needs an open connection.*Pass a new client"):
            hd.tl.superresolve(sdata, IMAGE, client=client, **SETTINGS)


def test_what_was_done_before_the_cluster_went_is_kept_and_the_run_goes_on_from_there(backed, tmp_path):
    whole = hd.datasets.phantom(n_genes=4, size_um=600.0)
    hd.tl.superresolve(whole, IMAGE, **SETTINGS)
    place = scratch(tmp_path / "section.zarr", "superres")
    cluster = distributed.LocalCluster(n_workers=1, processes=False, threads_per_worker=1, dashboard_address=None)
    with cluster, distributed.Client(cluster) as client:

        def close_when_some_are_done() -> None:
            while not MapStore(place).finished:
                time.sleep(0.001)
            client.close()

        closer = threading.Thread(target=close_when_some_are_done)
        closer.start()
        with pytest.raises(RuntimeError, match=r"an open connection.*Genes that are done are kept"):
            hd.tl.superresolve(backed, IMAGE, client=client, **SETTINGS)
        closer.join()
    assert "superres" not in backed and MapStore(place).finished
    hd.tl.superresolve(backed, IMAGE, **SETTINGS)
    assert np.array_equal(backed["superres"], whole["superres"], equal_nan=True)
    assert not place.exists()
