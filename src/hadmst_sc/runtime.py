"""The process: threads, memory, device and progress bar, all left as the caller had them.

numpy and scipy let go of the interpreter while they compute; the pieces are too small for BLAS to share out. Networks
allocate and free the same large buffers thousands of times. By default glibc returns each to the system and asks for it
anew, page by page: half of the time of an evaluation on bare metal, and nearly all of it on some virtual machines.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import cache
from math import inf
from pathlib import Path
from threading import Lock, get_ident
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController
from tqdm.auto import tqdm

if TYPE_CHECKING:
    import torch

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


_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # malloc.h
_LARGE, _TOP = 2**30, 2**27
# Limits once set no longer adapt: these are the largest to which glibc adapts its own. Smaller ones would slow down all
# that the process does after a run.
_DEFAULT_TRIM, _DEFAULT_TOP, _DEFAULT_MMAP = 2**26, 2**17, 2**25


_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # versions 2 and 1


def memory_limit() -> float:
    """Bytes that this process may have: those of the machine, or of its container or shell where that has fewer.

    Infinite where the system does not tell, as on Windows.
    """
    limits = [inf]
    with suppress(AttributeError, ValueError, OSError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in _CGROUP_LIMITS:
        with suppress(ValueError, OSError):  # no such file; "max"
            limits.append(int(Path(path).read_text()))
    with suppress(ImportError):
        import resource

        soft = resource.getrlimit(resource.RLIMIT_AS)[0]
        limits.append(inf if soft == resource.RLIM_INFINITY else soft)
    return min(limit for limit in limits if limit > 0)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def give_back() -> None:
    """Hand all freed memory to the system now: each thread keeps its own, which others cannot use."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """While inside, glibc keeps freed memory for the process; afterwards it is returned. No effect on other systems."""
    libc = _glibc()
    if libc is None:
        yield
        return
    for option, value in ((_TRIM_THRESHOLD, _LARGE), (_TOP_PAD, _TOP), (_MMAP_THRESHOLD, _LARGE)):
        libc.mallopt(option, value)
    try:
        yield
    finally:
        for option, value in (
            (_TRIM_THRESHOLD, _DEFAULT_TRIM),
            (_TOP_PAD, _DEFAULT_TOP),
            (_MMAP_THRESHOLD, _DEFAULT_MMAP),
        ):
            libc.mallopt(option, value)
        give_back()


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """``"auto"`` is the first of cuda, mps and cpu that works; anything else is taken literally."""
    import torch

    if device != "auto":
        try:
            return torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"`device={device!r}` is not to be had here: {error}. Try `device='auto'`.") from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@contextmanager
def torch_threads(n: int | None) -> Iterator[None]:
    """Inside, torch computes with ``n`` threads, if given; afterwards with as many as before.

    In a forked process it computes with one, whatever ``n``: see :func:`~hadmst_sc.runtime.alone_after_fork`.
    """
    import torch

    alone_after_fork()
    before = torch.get_num_threads()
    try:
        if n is not None and not is_forked():
            torch.set_num_threads(n)
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def progress(total: int, done: int, *, show: bool) -> Iterator[Callable[[int], None]]:
    """A bar over genes, of which some are done; gives what is called with the number of those done next."""
    bar: Any = None
    if show:
        with suppress(Exception):  # no standard error, or a closed one
            bar = tqdm(total=total, initial=done, desc="genes")

    def advance(n: int) -> None:
        if bar is not None and not bar.disable:
            try:
                bar.update(n)
            except Exception:  # noqa: BLE001 - a full disk, a pipe that nobody reads
                bar.disable = True

    try:
        yield advance
    finally:
        if bar is not None:
            with suppress(Exception):
                bar.close()
