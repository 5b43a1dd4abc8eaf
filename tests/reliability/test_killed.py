"""Killed at any time, or with a full disk, a store holds the old result or the new one, and its inputs as they were."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import runpy
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import spatialdata as sd

from hadmst_sc import datasets, tl
from hadmst_sc.io.write import check_output

SCRIPT = Path(__file__).with_name("run_once.py")
# Fifty take four minutes of every run of the tests; eight already end at either result.
N_KILLS = 50 if os.environ.get("HADMST_EXHAUSTIVE") else 8
PRELOADED = ["hadmst_sc.tl", "hadmst_sc.io.write", "spatialdata", "torch"]
RESULTS = ("superres", "superres_std", "superres_bins", "superres_table")


def start(store: Path, max_file: int = 0):
    """A process that replaces the result in a store; what takes seconds to import is there already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    values = {"STORE": str(store), "MAX_FILE": max_file}
    process = context.Process(target=runpy.run_path, args=(str(SCRIPT),), kwargs={"init_globals": values})
    process.start()
    return process


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Path:
    """A store with a result of the closed form, which has no standard deviation."""
    path = tmp_path_factory.mktemp("old") / "section.zarr"
    datasets.phantom(seed=1, n_genes=3, size_um=800.0).write(path)
    tl.superresolve(sd.read_zarr(path), "phantom_full_image", bin_um=20.0, model=None, show_progress_bar=False)
    return path


@pytest.fixture(scope="module")
def new(old, tmp_path_factory) -> tuple[Path, float]:
    """A store with the result of an undisturbed run, and the seconds it took."""
    path = tmp_path_factory.mktemp("new") / "section.zarr"
    shutil.copytree(old, path)
    for _ in range(2):  # the first starts the server too
        started = time.perf_counter()
        process = start(path)
        process.join()
        assert process.exitcode == 0
    return path, time.perf_counter() - started


def digest(store: Path, results: bool) -> str:
    """Of all files of the results, or of all others but the lists of what there is."""
    whole = hashlib.sha256()
    for file in sorted(path for path in store.rglob("*") if path.is_file()):
        place = file.relative_to(store)
        if place.parts[0].startswith("."):  # where a killed run was moving its elements from, until the next call
            continue
        is_result = any(part in RESULTS for part in place.parts)
        if is_result == results and (is_result or place.name != "zarr.json"):
            whole.update(str(place).encode() + file.read_bytes())
    return whole.hexdigest()


def values(store: Path) -> dict[str, np.ndarray]:
    sdata = sd.read_zarr(store)
    return {name: np.asarray(sdata[name].data) for name in RESULTS[:2] if name in sdata} | (
        {"table": np.asarray(sdata["superres_table"].X)} if "superres_table" in sdata else {}
    )


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(
        np.allclose(one[name], other[name], rtol=1e-4, equal_nan=True) for name in one
    )


@pytest.mark.slow
def test_killed_at_random_times_a_store_has_the_old_or_the_new_result(old, new, tmp_path):
    finished, seconds = new
    before, after, inputs = values(old), values(finished), digest(old, results=False)
    ends = {"old": 0, "new": 0, "old, once the next call had tidied up": 0}
    rng = np.random.default_rng(0)
    for trial in range(N_KILLS):
        store = tmp_path / f"{trial}.zarr"
        shutil.copytree(old, store)
        process = start(store)
        # Most of the time goes by before anything is written: half of the kills are meant for that and later.
        share = rng.uniform(0.7, 1.6) if trial % 2 else rng.uniform(0, 1)
        process.join(seconds * share)
        process.kill()
        process.join()
        found = values(store)  # opens, whatever happened
        tidied = "table" not in found
        if tidied:
            check_output(sd.read_zarr(store), "another", overwrite=False)
            check_output(sd.read_zarr(store), "superres", overwrite=True)
            found = values(store)
        assert same(found, before) or same(found, after), trial
        assert digest(store, results=False) == inputs, trial
        ends["new" if same(found, after) else "old, once the next call had tidied up" if tidied else "old"] += 1
        shutil.rmtree(store)
    print(ends)
    assert sum(ends.values()) == N_KILLS and ends["old"] and ends["new"]


@pytest.mark.parametrize("max_file", [100, 1_000, 5_000])
def test_a_full_disk_leaves_the_old_result_and_nothing_else(old, tmp_path, max_file):
    store = tmp_path / "section.zarr"
    shutil.copytree(old, store)
    whole = digest(store, results=True), digest(store, results=False), (store / "zarr.json").read_bytes()
    process = start(store, max_file)
    process.join()
    assert process.exitcode == 1
    assert (digest(store, results=True), digest(store, results=False), (store / "zarr.json").read_bytes()) == whole
    process = start(store)  # and when there is room again, it is made
    process.join()
    assert process.exitcode == 0 and "superres_std" in sd.read_zarr(store)
