"""Work side by side gives what one after the other would, in order, and its errors."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from hadmst_sc import runtime as threads
from hadmst_sc.runtime import MOST, cores, one_blas_thread, side_by_side


@pytest.fixture(autouse=True)
def no_bound(monkeypatch):
    """The tests themselves run with one thread each."""
    monkeypatch.setattr(threads, "_initial_threads", lambda: MOST)


def blas_threads() -> list[int]:
    assert np.ones((2, 2)).dot(np.ones(2)).tolist() == [2, 2]  # numpy's is loaded
    return [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]


def test_results_are_in_the_order_of_the_pieces():
    assert side_by_side(lambda piece: piece**2, range(100)) == [piece**2 for piece in range(100)]
    assert side_by_side(str, []) == []
    assert side_by_side(pow, [2, 3], [5, 2]) == [32, 9]
    with pytest.raises(ValueError, match="shorter"):
        side_by_side(pow, [2, 3], [5])


def test_pieces_run_at_the_same_time_on_as_many_cores_as_there_are():
    assert 1 <= cores() <= MOST
    meet = threading.Barrier(cores(), timeout=10)
    side_by_side(lambda _: meet.wait(), range(cores()))  # one after the other would wait in vain


def test_what_a_piece_raises_is_raised():
    def work(piece: int) -> int:
        if piece == 3:
            raise ValueError("the third")
        return piece

    with pytest.raises(ValueError, match="the third"):
        side_by_side(work, range(5))


LATER = """
import os, numpy
from hadmst_sc.runtime import cores, side_by_side
os.environ["OMP_NUM_THREADS"] = "1"
print(side_by_side(int, "1"), cores())
"""


@pytest.mark.parametrize("given_threads", [None, "1"])
def test_no_more_cores_than_a_worker_had_when_it_began(given_threads):
    """What a cluster that is started later tells its workers, in the environment of all, is not for this process."""
    # A cluster of another test has left several of these in the environment.
    given = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
    given |= {} if given_threads is None else {"OMP_NUM_THREADS": given_threads}
    found = subprocess.run([sys.executable, "-c", LATER], env=given, capture_output=True, text=True, check=True).stdout
    assert found.split() == ["[1]", given_threads or str(cores())]


def test_blas_keeps_to_one_thread_until_the_last_is_done():
    """Two runs in one process, the first of which ends first: neither leaves the other's limit behind."""
    before = blas_threads()
    first, second = one_blas_thread(), one_blas_thread()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert set(blas_threads()) == {1}
    second.__exit__(None, None, None)
    assert blas_threads() == before
    with pytest.raises(ValueError, match="what it is"), one_blas_thread():
        raise ValueError("what it is")
    assert blas_threads() == before
