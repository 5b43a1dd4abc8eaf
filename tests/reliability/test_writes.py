"""Writing a result into a store: killed at any file operation, interrupted at any write, with others at work."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import multiprocessing
import os
import runpy
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import spatialdata as sd
import zarr.storage._local as zarr_files

from hadmst_sc.io import check_output, read_observation, write_prediction
from hadmst_sc.io.lock import locked
from hadmst_sc.io.store import claimed, recover

HELPERS = runpy.run_path(str(Path(__file__).parents[1] / "io" / "conftest.py"))
RESULTS = ("superres", "superres_std", "superres_bins", "superres_table")
NEW, OLD = ["gene-1"], ["gene-2", "gene-0"]
LISTS = ("zarr.json", "images/zarr.json", "labels/zarr.json", "tables/zarr.json")
OPERATIONS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "shutil.rmtree", "shutil.copyfile")


def predicted(sdata: sd.SpatialData, genes: list[str], *, std: bool = False):
    obs = read_observation(sdata, "S1_full_image", bin_um=50.0, genes=genes)
    prediction = HELPERS["stand_in"](obs)
    return (prediction if std else replace(prediction, std=None)), obs.source


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> Path:
    """A section without a result (and without labels), and one with the old result, which has a std."""
    folder = tmp_path_factory.mktemp("stores")
    sdata = HELPERS["visium_section"](size=(200, 160))
    for name in ("S1_hires_image", "S1_lowres_image"):
        del sdata[name]
    sdata.attrs["note"] = "mine"
    sdata.write(folder / "first.zarr")
    shutil.copytree(folder / "first.zarr", folder / "overwrite.zarr")
    sdata = sd.read_zarr(folder / "overwrite.zarr")
    write_prediction(sdata, *predicted(sdata, OLD, std=True))
    return folder


# --- what is in a store ---


def files(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file()}


def is_of_result(place: str) -> bool:
    return place.split("/")[1:2] and place.split("/")[1] in RESULTS


def result(store: Path) -> str | None:
    """Digest of the files of a result; None if there is none."""
    found = [(place, data) for place, data in files(store).items() if is_of_result(place)]
    return hashlib.sha256(repr(found).encode()).hexdigest() if found else None


def rest(store: Path) -> dict[str, bytes]:
    """All files but those of results and the lists of what there is."""
    return {place: data for place, data in files(store).items() if place not in LISTS and not is_of_result(place)}


def check_lists(store: Path) -> None:
    """The lists say what is on disk, and provenance is that of the result; nothing strange is left."""
    root = json.loads((store / "zarr.json").read_text())
    nodes = {str(path.parent.relative_to(store)) for path in store.rglob("zarr.json")} - {"."}
    assert set(root["consolidated_metadata"]["metadata"]) == nodes
    assert root["attributes"]["note"] == "mine"
    has = (store / "images" / "superres").is_dir()
    assert ("superres" in root["attributes"].get("hadmst_sc", {})) == has == ("hadmst_sc" in root["attributes"])
    labels = store / "labels"
    assert labels.is_dir() == has
    assert not has or json.loads((labels / "zarr.json").read_text())["attributes"]["ome"]["labels"] == ["superres_bins"]
    assert {path.name for path in store.iterdir()} <= {"zarr.json", "images", "labels", "shapes", "tables"}


# --- killed at every file operation ---


class Watch:
    """Calls a function before each file operation below a folder: what is on disk then is what a kill leaves."""

    def __init__(self) -> None:
        self.under, self.call = "", None
        sys.addaudithook(self)  # for good

    def __call__(self, event: str, given: tuple) -> None:
        if self.call is None or event not in OPERATIONS:
            return
        if event == "open" and not (isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        if event not in ("os.remove", "os.rmdir") and not any(self.under in str(one) for one in given):
            return
        call, self.call = self.call, None
        try:
            call(f"{event} {[str(one) for one in given[:2]]}")
        finally:
            self.call = call

    @contextmanager
    def over(self, folder: Path, call) -> Iterator[None]:
        self.under, self.call = str(folder), call
        try:
            yield
        finally:
            self.call = None


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


def copy_of_a_folder_in_use(folder: Path, target: Path) -> None:
    """A copy of a folder in which other threads rename files meanwhile."""
    for _ in range(50):
        try:
            shutil.copytree(folder, target)
        except (shutil.Error, FileNotFoundError):  # a file went while it was copied
            shutil.rmtree(target, ignore_errors=True)
        else:
            return
    raise AssertionError("the folder never kept still")


def states_of_a_write(mode: str, stores: Path, work: Path, watch: Watch, *, swap_only: bool) -> list[Path]:
    """Copies of the folder of a store before each file operation of a write, and after the last."""
    store, states, n = work / "live" / "s.zarr", [], [0]
    shutil.copytree(stores / f"{mode}.zarr", store)
    sdata = sd.read_zarr(store)
    prediction, source = predicted(sdata, NEW)

    def keep(_: str) -> None:
        n[0] += 1
        in_swap = (store / ".superres.new").exists() or (work / "live" / ".s.zarr.superres.new" / "swap.json").exists()
        if in_swap or n[0] % 50 == 1 or not swap_only:
            states.append(work / str(n[0]))
            copy_of_a_folder_in_use(work / "live", states[-1])

    with watch.over(work / "live", keep):
        write_prediction(sdata, prediction, source, overwrite=True)
    states.append(work / "live")
    return states


NEXT = ("restore a backup", "replace by another store", "restore a backup over it", "move the store", "add an element")


def check_ways_on(state: Path, mode: str, stores: Path, new: str, work: Path, ways: Sequence[str]) -> str:
    """What users do after a kill; returns which result the next call finds."""
    before = stores / f"{mode}.zarr"
    old, inputs = result(before), rest(before)

    def copy(name: str) -> Path:
        shutil.copytree(state, work / name)
        return work / name / "s.zarr"

    store = copy("call again")
    recover(store, "superres")
    found = result(store)
    assert found in (old, new) and rest(store) == inputs
    check_lists(store)
    if found == old:
        assert files(store).keys() == files(before).keys()
    assert [path.name for path in store.parent.iterdir()] == ["s.zarr"]

    for way in ways:
        store = copy(way)
        if way == "restore a backup":
            shutil.rmtree(store)
            shutil.copytree(before, store)
            recover(store, "superres")
            assert files(store) == files(before)
        elif way == "replace by another store":
            shutil.rmtree(store)
            shutil.copytree(stores / "first.zarr", store)
            recover(store, "superres")
            assert files(store) == files(stores / "first.zarr")
        elif way == "restore a backup over it":
            shutil.copytree(before, store, dirs_exist_ok=True)
            recover(store, "superres")
            assert (files(before) if old else rest(before)).items() <= files(store).items()
        elif way == "move the store":
            moved = work / "elsewhere.zarr"
            store.rename(moved)
            recover(moved, "superres")
            assert result(moved) in (old, new) and rest(moved) == inputs
            check_lists(moved)
        elif way == "add an element":
            (store / "shapes" / "added").mkdir()
            shutil.copytree(store / "shapes" / "S1", store / "shapes" / "added", dirs_exist_ok=True)
            root = json.loads((store / "zarr.json").read_text())
            root["attributes"]["added"] = "since"
            listed = root["consolidated_metadata"]["metadata"]
            listed["shapes/added"] = listed["shapes/S1"]
            (store / "zarr.json").write_text(json.dumps(root))
            recover(store, "superres")
            assert result(store) in (old, new)
            root = json.loads((store / "zarr.json").read_text())
            assert (
                root["attributes"]["added"] == "since" and "shapes/added" in root["consolidated_metadata"]["metadata"]
            )
            check_lists(store)
    return "new" if found == new else "old"


@pytest.mark.parametrize("mode", ["first", "overwrite"])
def test_killed_at_any_operation_of_the_swap_nothing_is_lost_whatever_is_done_next(mode, stores, tmp_path, watch):
    check_states(mode, stores, tmp_path, watch, swap_only=True)


@pytest.mark.exhaustive
@pytest.mark.parametrize("mode", ["first", "overwrite"])
def test_killed_at_any_operation_at_all_nothing_is_lost_whatever_is_done_next(mode, stores, tmp_path, watch):
    check_states(mode, stores, tmp_path, watch, swap_only=False)


def check_states(mode: str, stores: Path, work: Path, watch: Watch, *, swap_only: bool) -> None:
    states = states_of_a_write(mode, stores, work, watch, swap_only=swap_only)
    new, ends = result(states[-1] / "s.zarr"), {"old": 0, "new": 0}
    for i, state in enumerate(states):
        if i % 3 == 0 or not swap_only:
            sd.read_zarr(state / "s.zarr")  # opens, whatever happened
        # After each kill some ways to go on, in turn; all of them after each where there is time.
        ways = (NEXT[i % len(NEXT)], NEXT[(i + 2) % len(NEXT)]) if swap_only else NEXT
        ends[check_ways_on(state, mode, stores, new, state.with_name(f"{state.name} and then"), ways)] += 1
    print(mode, len(states), ends)
    assert ends["old"] > 10 and ends["new"] > 5


@pytest.mark.parametrize("every", [20, pytest.param(3, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("mode", ["first", "overwrite"])
def test_killed_in_the_recovery_the_next_call_recovers(mode, every, stores, tmp_path, watch):
    states = states_of_a_write(mode, stores, tmp_path, watch, swap_only=True)
    new, old, n = result(states[-1] / "s.zarr"), result(stores / f"{mode}.zarr"), 0
    for state in [state for state in states if (state / "s.zarr" / ".superres.new").exists()][1::every]:
        work, seen = state.with_name(f"{state.name} again"), []
        shutil.copytree(state, work / "live")

        def keep(_: str, work=work, seen=seen) -> None:
            seen.append(work / str(len(seen)))
            shutil.copytree(work / "live", seen[-1])

        with watch.over(work / "live", keep):
            recover(work / "live" / "s.zarr", "superres")
        found = result(work / "live" / "s.zarr")
        for cut in seen:
            recover(cut / "s.zarr", "superres")
            # A recovery that took the last new element out again may be finished as an undoing.
            assert result(cut / "s.zarr") == found and found in (old, new)
            assert rest(cut / "s.zarr") == rest(stores / f"{mode}.zarr")
            check_lists(cut / "s.zarr")
            assert [path.name for path in cut.iterdir()] == ["s.zarr"]
            n += 1
    print(mode, n)
    assert n > 10


def test_a_group_that_a_kill_left_without_its_document_is_completed(stores, tmp_path):
    shutil.copytree(stores / "first.zarr", tmp_path / "s.zarr")
    (tmp_path / "s.zarr" / "labels").mkdir()  # as versions before this one left it
    sdata = sd.read_zarr(tmp_path / "s.zarr")
    write_prediction(sdata, *predicted(sdata, NEW))
    assert "superres_bins" in sd.read_zarr(tmp_path / "s.zarr")
    check_lists(tmp_path / "s.zarr")


# --- links and strangers ---


def swap_by_a_stranger(store: Path, home: Path) -> None:
    """A swap that was cut short, as an archive may hold it; its folders are links to another place."""
    folder = store / ".superres.new"
    (folder / "old").mkdir(parents=True)
    journal = {"run": "x", "new": ["images/../../../home/thesis", "images/superres"], "made": ["labels", "../home"]}
    (folder / "swap.json").write_text(json.dumps(journal | {"facts": {}, "before": None}))
    (folder / "old" / "images").symlink_to(home)
    (folder / "images").symlink_to(home)
    (folder / "partial").symlink_to(home / "thesis")
    beside = store.with_name(f".{store.name}.superres.new")
    beside.symlink_to(home)
    store.with_name(f".{store.name}.superres.lock").symlink_to(home / "thesis")
    store.with_name(f".{store.name}.lock").symlink_to(home / "new file")


@pytest.mark.parametrize("mode", ["overwrite", "first"])  # without a result its place is free, and takes what is moved
def test_nothing_outside_a_strangers_store_is_touched(mode, stores, tmp_path):
    store, home = tmp_path / "s.zarr", tmp_path / "home"
    shutil.copytree(stores / f"{mode}.zarr", store)
    (home / "superres").mkdir(parents=True)
    (home / "thesis").write_text("precious")
    swap_by_a_stranger(store, home)
    before = files(home)
    check_output(sd.read_zarr(store), "superres", overwrite=True)
    assert files(home) == before and (home / "superres").is_dir()
    assert files(store) == files(stores / f"{mode}.zarr")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "s.zarr"]


@pytest.mark.parametrize("place", ["images", "labels", "tables/zarr.json"])
def test_a_store_with_links_where_results_go_is_refused(place, stores, tmp_path):
    store, home = tmp_path / "s.zarr", tmp_path / "home"
    shutil.copytree(stores / "overwrite.zarr", store)
    home.mkdir()
    shutil.move(store / place, home / "there")
    (store / place).symlink_to(home / "there")
    before = files(home)
    with pytest.raises(OSError, match=rf"`sdata` needs a store without links, but {place} in s\.zarr is a link"):
        check_output(sd.read_zarr(store), "superres", overwrite=True)
    assert files(home) == before


# --- interrupts ---


SOME, EVERY = 9, None  # operations of a write that are interrupted
AT_ANY = [(0.1, SOME), *(pytest.param(*one, marks=pytest.mark.exhaustive) for one in ((0.0, EVERY), (0.005, EVERY)))]
AT_ANY += [pytest.param(delay, SOME, marks=pytest.mark.exhaustive) for delay in (0.02, 0.5)]


@pytest.mark.parametrize(("delay", "n_interrupts"), AT_ANY)
@pytest.mark.parametrize("mode", [pytest.param("first", marks=pytest.mark.exhaustive), "overwrite"])
def test_an_interrupt_at_any_write_leaves_the_old_result_or_the_new_one(
    mode, delay, n_interrupts, stores, tmp_path, watch, monkeypatch
):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore the signal
    put, slow = zarr_files._put, threading.Event()

    def slowly(*given, **more):
        if slow.is_set():
            time.sleep(delay)
        return put(*given, **more)

    monkeypatch.setattr(zarr_files, "_put", slowly)
    n_all = sum(1 for _ in operations(mode, stores, tmp_path / "all", watch))
    some = [*range(1, n_all, n_all // (SOME - 4)), *range(n_all - 60, n_all, 15)]  # more of the last, the swap
    for at in some if n_interrupts else range(1, n_all):
        store, n = tmp_path / str(at) / "s.zarr", [0]
        shutil.copytree(stores / f"{mode}.zarr", store)
        sdata = sd.read_zarr(store)
        prediction, source = predicted(sdata, NEW)
        slow.clear()

        def interrupt(_: str, n=n, at=at) -> None:
            n[0] += 1
            if n[0] == at:
                slow.set()
            if n[0] == at + 1 or (n[0] == at and not delay):
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(KeyboardInterrupt), watch.over(store.parent, interrupt):
            write_prediction(sdata, prediction, source, overwrite=True)
            time.sleep(1)  # a signal that was sent by another thread at the very end
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert [path.name for path in store.parent.iterdir()] == ["s.zarr"]
        check_lists(store)
        fresh = sd.read_zarr(store)
        for one in (sdata, fresh):
            genes = list(one["superres"].coords["c"].values) if "superres" in one else None
            assert genes in (None if mode == "first" else OLD, NEW)
            assert genes is None or genes == list(one["superres_table"].var_names)
        assert ("superres" in sdata) == ("superres" in fresh)
        shutil.rmtree(store.parent)


def operations(mode: str, stores: Path, work: Path, watch: Watch) -> list[str]:
    found: list[str] = []
    shutil.copytree(stores / f"{mode}.zarr", work / "s.zarr")
    sdata = sd.read_zarr(work / "s.zarr")
    prediction, source = predicted(sdata, NEW)
    with watch.over(work, found.append):
        write_prediction(sdata, prediction, source, overwrite=True)
    return found


# --- two at once ---


def write_at(store: str, key: str, genes: list[str], at: float) -> None:
    sdata = sd.read_zarr(store)
    prediction, source = predicted(sdata, genes)
    time.sleep(max(0.0, at - time.time()))
    write_prediction(sdata, prediction, source, key_added=key, overwrite=True)


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hadmst_sc.io.write", "spatialdata"])
    return context


@pytest.mark.parametrize("keys", [("one", "one"), ("one", "two")], ids=["same key", "other key"])
@pytest.mark.parametrize("apart", [0.0, *(pytest.param(0.03 * i, marks=pytest.mark.exhaustive) for i in range(1, 20))])
def test_two_processes_at_once_both_end_whole(keys, apart, stores, tmp_path, processes):
    store, start = tmp_path / "s.zarr", time.time() + 3
    shutil.copytree(stores / "first.zarr", store)
    genes = {0: OLD, 1: NEW}
    both = [
        processes.Process(target=write_at, args=(str(store), key, genes[i], start + i * apart))
        for i, key in enumerate(keys)
    ]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert [one.exitcode for one in both] == [0, 0]
    sdata = sd.read_zarr(store)
    assert set(sdata.attrs["hadmst_sc"]) == set(keys)
    for i, key in enumerate(keys):
        named = list(sdata[key].coords["c"].values)
        assert named == list(sdata[f"{key}_table"].var_names)
        assert named in ([genes[i]] if keys[0] != keys[1] else [OLD, NEW])
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]


def hold(store: str, key: str, ready, kill: bool) -> None:
    with claimed(Path(store), key):
        ready.set()
        if kill:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)


def test_a_second_run_is_refused_with_who_is_writing_and_since_when(stores, tmp_path, processes):
    store, ready = tmp_path / "s.zarr", processes.Event()
    shutil.copytree(stores / "first.zarr", store)
    other = processes.Process(target=hold, args=(str(store), "superres", ready, False))
    other.start()
    ready.wait(60)
    sdata = sd.read_zarr(store)
    message = rf"another run \(process {other.pid} on \S+, since 20\d\d-\S+ \S+\) is writing `superres` into s.zarr"
    with pytest.raises(OSError, match=message):
        check_output(sdata, "superres", overwrite=True)
    write_prediction(sdata, *predicted(sdata, NEW), key_added="other")  # the remedy
    other.terminate()
    other.join()
    check_output(sdata, "superres", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]


def test_a_lock_of_a_dead_process_is_taken_over(stores, tmp_path, processes):
    store, ready = tmp_path / "s.zarr", processes.Event()
    shutil.copytree(stores / "first.zarr", store)
    other = processes.Process(target=hold, args=(str(store), "superres", ready, True))
    other.start()
    other.join()
    assert other.exitcode == -signal.SIGKILL and (tmp_path / ".s.zarr.superres.lock").exists()
    check_output(sd.read_zarr(store), "superres", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]


def refusal_in_a_thread(store: Path) -> str:
    messages: list[str] = []

    def second() -> None:
        try:
            recover(store, "superres")
        except OSError as error:
            messages.append(str(error))

    thread = threading.Thread(target=second)
    thread.start()
    thread.join()
    return "".join(messages)


def test_a_second_thread_of_this_process_is_refused(stores, tmp_path):
    store = tmp_path / "s.zarr"
    shutil.copytree(stores / "first.zarr", store)
    with claimed(store, "superres"):
        assert "another thread of this process" in refusal_in_a_thread(store)
        recover(store, "superres")  # the same thread may: it is one run
    assert refusal_in_a_thread(store) == ""


def test_without_locks_of_the_file_system_a_file_takes_their_place(stores, tmp_path, monkeypatch, caplog):
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    store = tmp_path / "s.zarr"
    shutil.copytree(stores / "first.zarr", store)
    monkeypatch.setattr(fcntl, "flock", none)
    with locked(store, "superres", 0.0):
        assert "has no locks" in caplog.text
        assert "another thread of this process" in refusal_in_a_thread(store)
        assert [path.name for path in tmp_path.iterdir() if path != store] == [".s.zarr.superres.lock.soft"]
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]


def test_a_store_that_was_replaced_while_the_run_computed_is_left_alone(stores, tmp_path):
    store = tmp_path / "s.zarr"
    shutil.copytree(stores / "first.zarr", store)
    sdata = sd.read_zarr(store)
    prediction, source = predicted(sdata, NEW)
    with claimed(store, "superres"):
        shutil.rmtree(store)
        shutil.copytree(stores / "overwrite.zarr", store)
        with pytest.raises(OSError, match=r"s\.zarr was replaced by another during the run"):
            write_prediction(sdata, prediction, source, overwrite=True)
    assert files(store) == files(stores / "overwrite.zarr")
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]
