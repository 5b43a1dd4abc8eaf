"""Threads, memory, device and progress bar of the process; the caller's settings are restored.

numpy and scipy release the interpreter lock while they compute, and the pieces of work are too small for BLAS to
parallelise. Networks allocate and free the same large buffers thousands of times. By default glibc returns each to the
system and allocates it again page by page, which takes half of the time of an evaluation on bare metal, and nearly all
of it on some virtual machines.
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

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")

# numpy's defaults; a caller may have turned underflow into an error.
usual_errors = np.errstate(divide="warn", over="warn", under="ignore", invalid="warn")

MOST = 8  # more threads wait for the interpreter lock, and each piece takes memory


def cores() -> int:
    """Cores that this process may use; at most ``MOST`` and at most the initial number of BLAS threads."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST, own, _initial_threads())


@cache
def _libraries() -> ThreadpoolController:
    """Thread pools of numpy and scipy; cached because finding them takes milliseconds."""
    return ThreadpoolController()


@cache
def _initial_threads() -> int:
    """Initial number of BLAS threads. Not read from the environment, which clusters set for their workers and keep."""
    return max((one["num_threads"] for one in _libraries().info() if one["user_api"] == "blas"), default=MOST)


class Shared:
    """A setting of the whole process: made by the first thread that enters, undone by the last that leaves.

    If each thread made and undid the setting itself, threads that end out of order would restore the wrong state.

    Parameters
    ----------
    setting
        Returns a context manager that makes and undoes the setting.
    """

    def __init__(self, setting: Callable[[], AbstractContextManager[Any]]) -> None:
        self._setting, self._undo = setting, ExitStack()
        self._lock, self._users = Lock(), dict[object, int]()  # thread of each user
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Context in which the setting is made."""
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
        """Forget the other threads, which do not exist in a forked process."""
        self._lock = Lock()
        self._users = {me: thread for me, thread in self._users.items() if thread == get_ident()}
        if not self._users:
            self._undo.close()


def _limit_of_one() -> AbstractContextManager[Any]:
    _initial_threads()  # cache the initial number before it is changed
    return _libraries().limit(limits=1, user_api="blas")


# Keep BLAS in the calling thread. Otherwise its threads busy-wait for about 30 ms after each product, on cores that
# other work could use.
one_blas_thread = Shared(_limit_of_one)


def _renew_pools_of_dask() -> None:
    """Give a forked process new pools: the threads of the old ones do not exist, so they would wait forever."""
    threaded = sys.modules.get("dask.threaded")
    with suppress(AttributeError):
        threaded.default_pool, threaded.pools_lock = None, Lock()  # type: ignore[union-attr]
        threaded.pools.clear()  # type: ignore[union-attr]


class _Torch:
    """State of torch's threads: ``used``, and ``lost`` in a fork."""

    used, lost = False, False


def alone_after_fork() -> None:
    """Make torch use one thread in processes that are forked from this one; call before torch computes.

    OpenMP's threads do not exist in a forked process, and its parallel loops would wait for them forever.
    """
    _Torch.used = True


def is_forked() -> bool:
    """True if this process lost torch's threads in a fork, and must compute with one."""
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
    """Iterator version of :func:`side_by_side` for large results: yields each in order instead of keeping all."""
    with one_blas_thread(), ThreadPoolExecutor(cores()) as threads:
        yield from threads.map(lambda piece: work(*piece), zip(*pieces, strict=True))


def side_by_side(work: Callable[..., Result], *pieces: Iterable[Any]) -> list[Result]:
    """Apply ``work`` to each piece in parallel threads; results are in order, exceptions are raised.

    BLAS uses one thread meanwhile. With several iterables of the same length, ``work`` gets one item of each.
    """
    return list(each_in_turn(work, *pieces))


_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # malloc.h
_LARGE, _TOP = 2**30, 2**27
# Limits that are set no longer adapt. These are the largest values to which glibc adapts; smaller ones would slow down
# the process after a run.
_DEFAULT_TRIM, _DEFAULT_TOP, _DEFAULT_MMAP = 2**26, 2**17, 2**25


_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # versions 2 and 1


def memory_limit() -> float:
    """Bytes that this process may use: memory of the machine, or the limit of its container or shell if smaller.

    Infinite if the system does not report it, as on Windows.
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
    """Return all freed memory to the system now; each thread otherwise keeps its own, which others cannot use."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Context in which glibc keeps freed memory for the process, and returns it at the end; no effect elsewhere."""
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
    """Return a torch device; ``"auto"`` is the first of cuda, mps and cpu that is available."""
    import torch

    if device != "auto":
        try:
            return torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"`device={device!r}` is not available: {error}. Try `device='auto'`.") from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@contextmanager
def torch_threads(n: int | None) -> Iterator[None]:
    """Context in which torch uses ``n`` threads, if given; afterwards it uses as many as before.

    In a forked process it always uses one thread, see :func:`~hadmst_sc.runtime.alone_after_fork`.
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
    """Progress bar over ``total`` genes, ``done`` of them finished; yields a function that advances it."""
    bar: Any = None
    if show:
        from tqdm.auto import tqdm  # here, because every command of the command line loads this module

        with suppress(Exception):  # no standard error, or a closed one
            bar = tqdm(total=total, initial=done, desc="genes")

    def advance(n: int) -> None:
        if bar is not None and not bar.disable:
            try:
                bar.update(n)
            except Exception:  # noqa: BLE001 - a full disk, a broken pipe
                bar.disable = True

    try:
        yield advance
    finally:
        if bar is not None:
            with suppress(Exception):
                bar.close()
