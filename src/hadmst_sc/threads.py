"""Independent pieces of numpy work side by side, on as many cores as this process may use.

numpy and scipy let go of the interpreter while they compute; the pieces are too small for BLAS to share out.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import cache
from threading import Lock, get_ident
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

Result = TypeVar("Result")

# Of numpy's own accord; a caller may have made small numbers that vanish an error.
usual_errors = np.errstate(divide="warn", over="warn", under="ignore", invalid="warn")

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


class Shared:
    """A setting of the whole process: made by the first thread that needs it, undone by the last that is done.

    Settings that each thread makes and undoes for itself would leave that of one behind when another ends first.

    Parameters
    ----------
    setting
        Gives the context that makes and undoes it.
    """

    def __init__(self, setting: Callable[[], AbstractContextManager[Any]]) -> None:
        self._setting, self._undo = setting, ExitStack()
        self._lock, self._users = Lock(), dict[object, int]()  # of which thread each is
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Inside, the setting is made."""
        me = object()
        try:
            with self._lock:
                if not self._users:
                    self._undo.enter_context(self._setting())
                self._users[me] = get_ident()
            yield
        finally:
            with self._lock:
                self._users.pop(me, None)
                if not self._users:
                    self._undo.close()

    def _after_fork(self) -> None:
        """A forked process has none of the other threads, which will undo nothing there."""
        self._lock = Lock()
        self._users = {me: thread for me, thread in self._users.items() if thread == get_ident()}
        if not self._users:
            self._undo.close()


def _limit_of_one() -> AbstractContextManager[Any]:
    _told()  # before BLAS is told otherwise
    return _libraries().limit(limits=1, user_api="blas")


# BLAS keeps to the thread that calls it. After a product its threads wait for the next one, and keep busy for some
# 30 ms, on cores that others could use.
one_blas_thread = Shared(_limit_of_one)


def _renew_pools_of_dask() -> None:
    """Give a forked process new pools: the old ones have no threads there, and would wait for ever."""
    threaded = sys.modules.get("dask.threaded")
    with suppress(AttributeError):
        threaded.default_pool, threaded.pools_lock = None, Lock()  # type: ignore[union-attr]
        threaded.pools.clear()  # type: ignore[union-attr]


class _Torch:
    """Whether its threads are in use, and were lost in a fork."""

    used, lost = False, False


def alone_after_fork() -> None:
    """Called before torch computes: if this process is forked later, torch will compute with one thread in the other.

    OpenMP's threads do not come along, and the loops that were shared out among them would wait for them for ever.
    """
    _Torch.used = True


def is_forked() -> bool:
    """Whether this process lost the threads of torch in a fork, and is to compute with one."""
    return _Torch.lost


def _keep_torch_to_one_thread() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and _Torch.used and torch.get_num_threads() > 1:
        torch.set_num_threads(1)
        _Torch.lost = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_pools_of_dask)
    os.register_at_fork(after_in_child=_keep_torch_to_one_thread)


def each_in_turn(work: Callable[..., Result], *pieces: Iterable[Any]) -> Iterator[Result]:
    """As :func:`side_by_side`, for results that are large: each is handed on as soon as it is its turn, not kept."""
    with one_blas_thread(), ThreadPoolExecutor(cores()) as threads:
        yield from threads.map(lambda piece: work(*piece), zip(*pieces, strict=True))


def side_by_side(work: Callable[..., Result], *pieces: Iterable[Any]) -> list[Result]:
    """``work`` of each piece, in their order; what one raises is raised. BLAS meanwhile keeps to the piece's thread.

    With several iterables, all of one length, a piece is one of each.
    """
    return list(each_in_turn(work, *pieces))
