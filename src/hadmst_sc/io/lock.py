"""Locks next to a store, so that only one process writes at a time, and errors of stores that cannot be written."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import filelock
from zarr.core.sync import sync

from hadmst_sc.section.errors import logger

WAIT, POLL = 60.0, 0.05  # seconds that a write waits for another one, and between two attempts
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM}
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}  # from some network file systems


class StoreError(OSError):
    """A store cannot be written: in use, read-only, full, replaced, deleted or renamed."""


class _Held(NamedTuple):
    """A lock of this process: its owner, and an open descriptor of the store where the system can open folders."""

    owner: tuple[int, int]
    lock: filelock.BaseFileLock
    store: int | None


_held: dict[Path, _Held] = {}


def home(path: str | Path) -> Path:
    """Return the real path of a store, with links resolved."""
    return Path(os.path.realpath(path))


def beside(path: Path, name: str) -> Path:
    """Return the path of a hidden file or folder next to a store."""
    return path.with_name(f".{path.name}.{name}")


@contextmanager
def locked(path: Path, key: str = "", wait: float = WAIT) -> Iterator[bool]:
    """Hold the lock of one result in a store, or of the whole store.

    The system releases the lock of a process that dies. The lock file names its owner and is removed at the end.

    Parameters
    ----------
    path
        The store, as returned by :func:`home`.
    key
        Name of the result; empty for the whole store.
    wait
        Seconds to wait for another owner.

    Yields
    ------
    True if the lock is new; False if an enclosing block of the same thread already holds it.

    Raises
    ------
    StoreError
        If another process or thread holds it, or no file can be created next to the store.
    """
    file, me = beside(path, f"{key}.lock" if key else "lock"), (os.getpid(), threading.get_ident())
    if file in _held and _held[file].owner == me:
        _check_same(path, _held[file].store)
        yield False
        return
    try:
        with named(path):
            _acquire(file, path, key, wait, me)
        yield True
    finally:
        with interrupts_held():
            if file in _held and _held[file].owner == me:  # else it is held elsewhere, or an interrupt came first
                _release(file)


def _release(file: Path) -> None:
    _, lock, store = _held.pop(file)
    if store is not None:
        os.close(store)
    if isinstance(lock, filelock.UnixFileLock):  # other locks remove their file themselves
        # While the lock is held: a waiting process then sees that this file is deleted and creates a new one.
        file.unlink(missing_ok=True)
    lock.release()


def _acquire(file: Path, path: Path, key: str, wait: float, me: tuple[int, int]) -> None:
    """Wait for a lock; interrupts are deferred only during each attempt, where they would leave the file behind."""
    if file.is_symlink():
        file.unlink()  # this package never creates links
    lock: filelock.BaseFileLock = filelock.FileLock(file)
    ends = time.monotonic() + wait
    while True:
        with interrupts_held():
            try:
                lock.acquire(timeout=0)
                _held[file] = _Held(me, lock, _opened(path))
                if isinstance(lock, filelock.UnixFileLock):  # soft locks write this themselves, Windows forbids it
                    with suppress(OSError):
                        file.write_text(f"{os.getpid()}\n{socket.gethostname()}\n")
                return
            except filelock.Timeout as error:
                if time.monotonic() >= ends:
                    raise _busy_error(path, key, Path(lock.lock_file)) from error
            except (OSError, NotImplementedError) as error:
                if not isinstance(lock, filelock.UnixFileLock) or getattr(error, "errno", errno.ENOSYS) not in NO_LOCKS:
                    raise
                lock = _without_locks(file, path)
        time.sleep(POLL)


def _without_locks(file: Path, path: Path) -> filelock.BaseFileLock:
    """Return a lock for file systems without locks: its file is the lock, and survives a crash of another computer."""
    file.unlink(missing_ok=True)
    instead = file.with_name(f"{file.name}.soft")
    logger.warning(
        "the file system of %s has no locks, so a lock file is used; if another computer crashes while it writes, "
        "delete the remaining %s",
        path.name,
        instead,
    )
    return filelock.SoftFileLock(instead)


def _busy_error(path: Path, key: str, file: Path) -> StoreError:
    what, remedy = (f"`{key}` into ", ", or pass another `key_added=`") if key else ("into ", "")
    return StoreError(
        f"`sdata` needs a store with no other writer, but {_owner(file)} is writing {what}{path.name}. Two "
        f"writers would destroy each other's files. Wait until it has finished{remedy}."
    )


def _owner(file: Path) -> str:
    """Describe the owner of a lock and the time it was acquired."""
    try:
        pid, host = file.read_text().splitlines()[:2]
        since = datetime.fromtimestamp(file.stat().st_mtime).isoformat(" ", "seconds")
    except (OSError, ValueError):
        return "another run"
    if (pid, host) == (str(os.getpid()), socket.gethostname()):
        return f"another thread of this process (since {since})"
    return f"another run (process {pid[:20]!s} on {host[:64]!s}, since {since})"


def _opened(path: Path) -> int | None:
    """Open the folder and return its descriptor: while it is open, no other folder gets the same inode."""
    try:
        return os.open(path, os.O_RDONLY)
    except OSError:  # on Windows, or if it was deleted
        return None


def _check_same(path: Path, store: int | None) -> None:
    if store is not None and path.exists() and not os.path.samestat(os.fstat(store), os.stat(path)):
        raise StoreError(
            f"`sdata` needs the store that it was read from, but {path.name} was replaced by another during the run. "
            f"Nothing was written. Call `sdata = spatialdata.read_zarr({str(path)!r})` and run again."
        )


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Convert operating system errors that concern a store to a :class:`StoreError` that names it."""
    path = home(path)
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        about = error.filename is None or str(error.filename).startswith((str(path), str(beside(path, ""))))
        if error.errno in FULL and about:
            remedy = "Free some space and call again"
        elif error.errno in REFUSED and about:
            remedy = "Call `sdata.write('copy.zarr'); sdata = spatialdata.read_zarr('copy.zarr')`"
        elif error.errno is not None and not path.exists():
            raise gone(path) from error
        else:
            raise
        raise StoreError(
            f"`sdata` needs a store that can be written, in a folder that can be written, but {path} cannot: "
            f"{error.strerror}. The store is unchanged. {remedy}."
        ) from error


def gone(path: Path) -> StoreError:
    """Return the error for a store that was deleted or renamed."""
    return StoreError(
        f"`sdata` needs the store that it was read from, but {path} was deleted or renamed. Nothing was written. "
        f"Read it from its new path, as in `sdata = spatialdata.read_zarr('moved.zarr')`."
    )


@contextmanager
def interrupts_held() -> Iterator[Callable[[], None]]:
    """Defer SIGINT until the end of the block.

    Works in the main thread only, because Python delivers signals nowhere else.

    Yields
    ------
    A function that raises a deferred interrupt; to be called at points where the block may be left.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is None:
        yield lambda: None
        return
    waiting: list[int] = []

    def note(number: int, _: object) -> None:
        waiting.append(number)

    def let_through() -> None:
        if waiting:
            waiting.clear()
            signal.signal(signal.SIGINT, before)
            try:
                signal.raise_signal(signal.SIGINT)
            finally:
                signal.signal(signal.SIGINT, note)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield let_through
    finally:
        signal.signal(signal.SIGINT, before)
        if waiting:
            signal.raise_signal(signal.SIGINT)


def wait_for_zarr() -> None:
    """Wait until zarr's thread has finished writing: when one write fails, writes started with it continue."""
    sync(_others())


async def _others() -> None:
    if others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others)
