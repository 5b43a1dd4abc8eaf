"""Independent pieces of numpy work side by side, on as many cores as this process may use.

numpy and scipy let go of the interpreter while they compute; the pieces are too small for BLAS to share out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

from threadpoolctl import ThreadpoolController

Piece = TypeVar("Piece")
Result = TypeVar("Result")

MOST = 8  # beyond, they would wait for the interpreter, and each piece takes memory


def cores() -> int:
    """Cores that this process may use, but no more than ``MOST``."""
    return min(MOST, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


@cache
def _libraries() -> ThreadpoolController:
    """Those of numpy and scipy; to look for them takes milliseconds."""
    return ThreadpoolController()


def side_by_side(work: Callable[[Piece], Result], pieces: Iterable[Piece]) -> list[Result]:
    """``work`` of each piece, in their order; what one raises is raised. BLAS meanwhile keeps to the piece's thread."""
    with _libraries().limit(limits=1, user_api="blas"), ThreadPoolExecutor(cores()) as threads:
        return list(threads.map(work, pieces))
