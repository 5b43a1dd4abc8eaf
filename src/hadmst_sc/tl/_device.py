"""Device and number of threads of the network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hadmst_sc.threads import alone_after_fork, is_forked


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """``"auto"`` is the first of cuda, mps and cpu that works; anything else is taken literally."""
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

    In a forked process it computes with one, whatever ``n``: see :func:`~hadmst_sc.threads.alone_after_fork`.
    """
    alone_after_fork()
    before = torch.get_num_threads()
    try:
        if n is not None and not is_forked():
            torch.set_num_threads(n)
        yield
    finally:
        torch.set_num_threads(before)
