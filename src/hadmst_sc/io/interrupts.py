"""Hold Ctrl-C back while files are written: an interrupted write goes on in the threads of zarr and dask."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from zarr.core.sync import sync


@contextmanager
def interrupts_held() -> Iterator[Callable[[], None]]:
    """Let SIGINT wait until the end of the block.

    Outside the main thread, where Python delivers no signals, this does nothing.

    Yields
    ------
    A function that lets a waiting interrupt through; for moments at which the block may be left.
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
    """Wait until zarr's thread writes nothing any more: where one write fails, those begun with it go on."""
    sync(_others())


async def _others() -> None:
    if others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others)
