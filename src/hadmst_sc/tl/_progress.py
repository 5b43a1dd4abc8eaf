"""A progress bar that never stops a run: where nothing can be written, there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tqdm.auto import tqdm


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
