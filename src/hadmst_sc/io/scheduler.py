"""The Dask scheduler that computes lazy arrays while sections are read and written."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import dask

from hadmst_sc.runtime import Shared

OF_CLUSTERS = ("dask.distributed", "distributed")


def _setting() -> AbstractContextManager[Any]:
    chosen = dask.config.get("scheduler", None)
    return dask.config.set(scheduler="threads") if chosen is None or chosen in OF_CLUSTERS else nullcontext()


# A Dask client of the user would first send every image to its workers, and wait forever if there are none.
computed_here = Shared(_setting)
