"""Waiting without a bar: ``python benchmarks/waiting.py``.

The mouse brain (2,698 Visium spots) is read, then checked by ``pp.validate`` and superresolved by ``tl.superresolve``
for its 200 most abundant genes. The terminal is a file that notes when something is drawn. A user waits without a bar
until the first picture of a call, and between two pictures that are more than a second apart. Imports and reading the
section are printed below the table; they are not part of the share.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from typing import Any

import numpy as np
import records
from frame import Measurement, Record, rounded

LONGEST = 1.0  # seconds between two pictures; a bar that stands still for longer is taken for a hanging one
ABOUT = str(__doc__).split("\n\n", 1)[1].strip()


class Terminal(io.StringIO):
    """A terminal that keeps the times of what is drawn, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def isatty(self) -> bool:
        """A bar is drawn on terminals only."""
        return True

    def write(self, text: str) -> int:
        """Note the time; what is drawn is not kept."""
        self.times.append(time.perf_counter())
        return len(text)


def waited(call: Callable[[], Any]) -> dict[str, float]:
    """Seconds of a call: all, to the first picture, and without a bar."""
    terminal = Terminal()
    with redirect_stderr(terminal):
        started = time.perf_counter()
        call()
        ended = time.perf_counter()
    steps = np.diff([started, *terminal.times, ended])
    silent = steps[0] + sum(step for step in steps[1:] if step > LONGEST)
    return {"seconds": ended - started, "to the first picture": steps[0], "without a bar": silent}


def measure(options: argparse.Namespace) -> Record:
    started = time.perf_counter()
    import hadmst_sc as hd
    from hadmst_sc.datasets import load

    sdata = load(options.section)
    image_key = f"{options.section}_full_image"
    before = time.perf_counter() - started
    calls = {
        "validate": lambda: hd.pp.validate(sdata, image_key),
        "superresolve": lambda: hd.tl.superresolve(sdata, image_key, genes=options.genes),
    }
    found = {name: waited(call) for name, call in calls.items()}
    share = sum(one["without a bar"] for one in found.values()) / sum(one["seconds"] for one in found.values())
    return {
        "settings": {"section": options.section, "genes": options.genes},
        "share": round(share, 4),
        "calls": {name: rounded(one, 2) for name, one in found.items()},
        "import_and_load_seconds": round(before, 2),
    }


def render(record: Record) -> str:
    columns = ["seconds", "to the first picture", "without a bar"]
    rows = [[name, *(f"{one[column]:.1f}" for column in columns)] for name, one in record["calls"].items()]
    return records.page(
        record,
        f"# Waiting without a bar: {record['share']:.1%} of the time",
        ABOUT,
        records.table(["call", *columns], rows),
        f"Imports and reading the section: {record['import_and_load_seconds']:.1f} s.",
    )


WAITING = Measurement("waiting", __doc__, measure, render)

if __name__ == "__main__":
    WAITING.main()
