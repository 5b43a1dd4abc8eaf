"""Independent pieces of numpy work side by side, on as many cores as this process may use.

numpy and scipy let go of the interpreter while they compute; the pieces are too small for BLAS to share out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache
from threading import Lock
from typing import Any, TypeVar

from threadpoolctl import ThreadpoolController

Result = TypeVar("Result")

MOST = 8  # beyond, they would wait for the interpreter, and each piece takes memory


def cores() -> int:
    """Cores that this process may use, but no more than ``MOST``, nor than BLAS was told of, as in workers."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST, own, _told())


@cache
def _libraries() -> ThreadpoolController:
    """Those of numpy and scipy; to look for them takes milliseconds."""
    return ThreadpoolController()


@cache
def _told() -> int:
    """Threads that BLAS began with. Not the environment: a cluster sets that for its workers, and leaves it so."""
    return max((one["num_threads"] for one in _libraries().info() if one["user_api"] == "blas"), default=MOST)


class _Kept:
    """How many ask for BLAS to keep to one thread, and what undoes it."""

    lock, n, undo = Lock(), 0, ExitStack()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """BLAS keeps to the thread that calls it, in this process, until the last that asked for it is done.

    After a product its threads wait for the next one, and keep busy for some 30 ms, on cores that others could use.
    """
    with _Kept.lock:
        if not _Kept.n:
            _told()  # before it is told otherwise
            _Kept.undo.enter_context(_libraries().limit(limits=1, user_api="blas"))
        _Kept.n += 1
    try:
        yield
    finally:
        with _Kept.lock:
            _Kept.n -= 1
            if not _Kept.n:
                _Kept.undo.close()


def each_in_turn(work: Callable[..., Result], *pieces: Iterable[Any]) -> Iterator[Result]:
    """As :func:`side_by_side`, for results that are large: each is handed on as soon as it is its turn, not kept."""
    with one_blas_thread(), ThreadPoolExecutor(cores()) as threads:
        yield from threads.map(lambda piece: work(*piece), zip(*pieces, strict=True))


def side_by_side(work: Callable[..., Result], *pieces: Iterable[Any]) -> list[Result]:
    """``work`` of each piece, in their order; what one raises is raised. BLAS meanwhile keeps to the piece's thread.

    With several iterables, all of one length, a piece is one of each.
    """
    return list(each_in_turn(work, *pieces))
