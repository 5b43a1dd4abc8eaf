"""Settings of the caller: results do not depend on them, and they are afterwards as they were."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import warnings
from contextlib import nullcontext

import dask
import numpy as np
import pytest
import torch

import hadmst_sc as hd
from hadmst_sc import tl
from hadmst_sc.io.read import computed_here
from hadmst_sc.models.weights import load_model, self_test
from hadmst_sc.runtime import Shared
from hadmst_sc.section.errors import logger, warnings_heard

IMAGE = "phantom_full_image"
HOW = {"bin_um": 20.0, "show_progress_bar": False}


def maps_of(**how) -> np.ndarray:
    sdata = hd.datasets.phantom(n_genes=3, size_um=600.0)
    tl.superresolve(sdata, IMAGE, **HOW | how)
    return np.stack([sdata["superres"], sdata["superres_std"]])


@pytest.fixture(scope="module")
def reference():
    return maps_of()


STATES = {
    "numpy raises": lambda: np.errstate(all="raise"),
    "float64": lambda: setting(torch.set_default_dtype, torch.float64, torch.float32),
    "device meta": lambda: torch.device("meta"),
    "inference": torch.inference_mode,
    "bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "deterministic": lambda: setting(torch.use_deterministic_algorithms, True, False),
}


class setting:
    def __init__(self, call, inside, after):
        self.call, self.inside, self.after = call, inside, after

    def __enter__(self):
        self.call(self.inside)

    def __exit__(self, *_):
        self.call(self.after)


@pytest.mark.parametrize("state", STATES)
def test_results_do_not_depend_on_the_callers_settings(reference, state):
    with STATES[state](), warnings.catch_warnings():
        warnings.simplefilter("error")
        found = maps_of()
    assert np.array_equal(found, reference, equal_nan=True)


def test_random_states_and_threads_are_as_they_were(reference):
    def state():
        import random

        numpy, threads = np.random.get_state(), torch.get_num_threads()  # noqa: NPY002 - what a caller may use
        return numpy[1].tolist(), numpy[2], torch.get_rng_state().tolist(), random.getstate(), threads

    before = state()
    # Other tests may have left torch with more threads; bits are promised for the same number only.
    np.testing.assert_allclose(maps_of(n_jobs=1), reference, rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match="batch_size"):
        maps_of(batch_size=-1, n_jobs=2)
    assert state() == before


def test_a_model_loads_as_itself_whatever_the_defaults():
    with torch.device("meta"), torch.inference_mode(), setting(torch.set_default_dtype, torch.float64, torch.float32):
        model = load_model("default")
        assert self_test(model) <= 1e-4
    assert not next(model.parameters()).is_inference() and next(model.parameters()).dtype == torch.float32


def test_overlapping_listeners_hear_their_own_warnings_and_leave_the_logger_as_it_was(caplog):
    """In the order first in, first out, in which one would have put back what the other had changed."""
    ours = logging.getLogger("hadmst_sc")
    before = (ours.propagate, ours.level, list(ours.handlers), list(ours.filters))
    first_in, second_in, heard = threading.Event(), threading.Event(), {}

    def first() -> None:
        with warnings_heard() as heard["first"]:
            first_in.set()
            second_in.wait(10)
            logger.warning("of the %s", "first")
        logger.warning("to all")

    def second() -> None:
        first_in.wait(10)
        with warnings_heard() as heard["second"]:
            second_in.set()
            one.join(10)
            logger.warning("of the second")
            logger.info("not a warning")

    one, two = threading.Thread(target=first), threading.Thread(target=second)
    with caplog.at_level(logging.INFO, logger="hadmst_sc"):
        for thread in (one, two):
            thread.start()
        for thread in (one, two):
            thread.join()
        assert heard == {"first": ["of the first"], "second": ["of the second"]}
        assert [record.getMessage() for record in caplog.records] == ["to all"]
        assert caplog.records[0].funcName == "first"  # the caller is shown, not the adapter
    assert (ours.propagate, ours.level, list(ours.handlers), list(ours.filters)) == before


def test_a_report_holds_its_warnings_whatever_the_loggers_level():
    sdata = hd.datasets.phantom(n_genes=3, size_um=600.0)
    found = hd.pp.validate(sdata, IMAGE, align=False)
    logging.disable(logging.CRITICAL)
    try:
        assert hd.pp.validate(sdata, IMAGE, align=False).findings == found.findings
    finally:
        logging.disable(logging.NOTSET)


def test_a_shared_setting_is_undone_by_the_last_whatever_is_raised():
    made = []

    class Setting(nullcontext):
        def __enter__(self):
            made.append("made")

        def __exit__(self, *_):
            made.append("undone")

    shared = Shared(Setting)
    first, second = shared(), shared()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert made == ["made"]
    with pytest.raises(KeyboardInterrupt), shared():
        raise KeyboardInterrupt
    assert made == ["made"]
    second.__exit__(None, None, None)
    assert made == ["made", "undone"]


def test_the_callers_scheduler_is_kept():
    for chosen in ("synchronous", None, "dask.distributed"):
        with dask.config.set(scheduler=chosen):
            with computed_here():
                assert dask.config.get("scheduler") == ("synchronous" if chosen == "synchronous" else "threads")
            assert dask.config.get("scheduler") == chosen


FORKED = """
import json, os, sys
import numpy as np, torch
import hadmst_sc as hd
from threadpoolctl import threadpool_info
torch.set_num_threads(2)
def run():
    sdata = hd.datasets.phantom(n_genes=3, size_um=600.0)
    hd.tl.superresolve(sdata, "phantom_full_image", bin_um=20.0, n_jobs=2, show_progress_bar=False)
    return np.nan_to_num(np.asarray(sdata["superres"]))
before = run()
environment = dict(os.environ)
child = os.fork()
if child == 0:
    os._exit(0 if np.abs(run() - before).max() <= 1e-5 * before.max() else 3)
print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
"""


def test_a_process_that_is_forked_after_a_run_computes_the_same():
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=300, check=True)
    assert json.loads(done.stdout) == 0


def test_a_run_leaves_the_environment_as_it_was():
    code = (
        "import os, hadmst_sc as hd\n"
        "sdata = hd.datasets.phantom(n_genes=3, size_um=600.0)\n"
        "before = dict(os.environ)\n"
        "hd.tl.superresolve(sdata, 'phantom_full_image', bin_um=20.0, show_progress_bar=False)\n"
        "assert dict(os.environ) == before, set(os.environ.items()) ^ set(before.items())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-800:]
