"""Memory of this process: how much it may have, and freed memory used again instead of handed back to the system.

Networks allocate and free the same large buffers thousands of times. By default glibc returns each to the system and
asks for it anew, page by page: half of the time of an evaluation on bare metal, and nearly all of it on some virtual
machines.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path

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
