"""One bar over all stages of a run, with the time left; in a log file, a line now and then.

Nothing here loads torch: a section is also checked and registered without it.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import takewhile
from math import exp
from threading import Event, Thread
from typing import Any

import numpy as np
from scipy import ndimage

from hadmst_sc.section.errors import logger
from hadmst_sc.section.observation import Observation

STAGES = {  # in the order of a run
    "read": "reading the section",
    "cost": "estimating the time",
    "align": "registering the image",
    "gate": "judging the network",
    "distill": "distilling the section",
    "metagenes": "predicting metagenes",
    "predict": "predicting genes",
    "write": "writing the result",
    "score": "scoring the genes",
}
DELAY, TICK, LINE_EVERY = 1.0, 0.2, 30.0  # seconds to the first picture, between two, and between lines of a log
STEADY = 0.8  # share of a stage up to which the bar follows the clock at full pace
FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
# Time in Gaussian filters of one map of the grid, measured on a mouse brain. Half of a distillation is the second look.
REGISTRATION, DISTILLATION = 2500, 2000


class Progress:
    """Stages of a run: the bar that shows them, and the seconds of each.

    A stage counts by the seconds that it is expected to take. Few stages can tell how far they are, so within a stage
    the bar follows the clock, at the pace of the stages before; a stage that takes longer than expected slows it down.

    Parameters
    ----------
    show
        False measures the seconds only.
    """

    def __init__(self, *, show: bool) -> None:
        self.seconds: dict[str, float] = {}
        self._show, self._ended = show, Event()
        self._bar: Any = None
        self._thread = Thread(target=self._draw_until_ended, daemon=True, name="hadmst-sc progress")
        self._plan: dict[str, float] = {}
        self._started = self._since = self._line = time.perf_counter()
        self._stage, self._text, self._shown = "", "", 0.0
        # Time of the last event, and expected seconds then: done, left in the stage. One object, as a thread reads it.
        self._event = (self._started, 0.0, 0.0)

    def __enter__(self) -> Progress:
        if self._show:
            logger.logger.addFilter(self._make_room)
            self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._spend()
        if not self._show:
            return
        self._ended.set()
        self._thread.join()
        logger.logger.removeFilter(self._make_room)
        if self._bar is not None:
            with suppress(Exception):
                if kind is None:
                    self._bar.n = self._bar.total
                self._bar.close()

    def plan(self, seconds: dict[str, float]) -> None:
        """Expected seconds of each stage that is to come, by its key in ``STAGES``."""
        self._spend()
        self._plan = self.seconds | seconds
        self._reckon(1.0)

    def shorten(self, stage: str, share: float) -> None:
        """Only a share of a stage is left to do: an earlier run has done the rest."""
        self._plan = self._plan | {stage: share * self._plan.get(stage, 0.0)}  # a new one, as a thread reads it

    def at(self, stage: str, share: float = 0.0, text: str = "") -> None:
        """A stage begins, or a share of it is done; the text is shown in place of its name."""
        self._spend()
        self._stage, self._text = stage, text or STAGES[stage]
        self._reckon(share)

    def _spend(self) -> None:
        """Add the time since the last call to the stage."""
        now = time.perf_counter()
        if self._stage:
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + now - self._since
        self._since = now

    def _reckon(self, share: float) -> None:
        before = takewhile(lambda name: name != self._stage, STAGES)
        whole = self._plan.get(self._stage, 0.0)
        self._event = (
            self._since,
            sum(self._plan.get(name, 0.0) for name in before) + share * whole,
            (1 - share) * whole,
        )

    def _position(self, now: float) -> float:
        """Expected seconds that are done by now; it never decreases."""
        since, done, left = self._event
        spent = since - self._started
        pace = done / spent if done and spent else 1.0
        share = pace * (now - since) / left if left else 0.0
        if share > STEADY:
            share = 1 - (1 - STEADY) * exp((STEADY - share) / (1 - STEADY))
        self._shown = max(self._shown, done + share * left)
        return self._shown

    def _draw_until_ended(self) -> None:
        with suppress(Exception):  # no standard error, a closed one, a full disk: the run goes on without a bar
            if self._ended.wait(DELAY):
                return
            from tqdm.auto import tqdm

            in_notebook = any(one.__name__ == "tqdm_notebook" for one in tqdm.__mro__)
            draw = self._draw if in_notebook or sys.stderr.isatty() else self._write_line
            draw(tqdm)
            while not self._ended.wait(TICK):
                draw(tqdm)

    def _draw(self, tqdm: Any) -> None:
        total = sum(self._plan.values()) or None
        if self._bar is None:
            self._bar = tqdm(total=total, desc=self._text, bar_format=FORMAT, dynamic_ncols=True)
            self._bar.start_t -= time.perf_counter() - self._started
        self._bar.total, self._bar.n = total, min(self._position(time.perf_counter()), total or 0.0)
        self._bar.set_description_str(self._text)  # draws

    def _write_line(self, tqdm: Any) -> None:
        now, total = time.perf_counter(), sum(self._plan.values())
        shown = self._position(now)
        if now - self._line < LINE_EVERY:
            return
        self._line = now
        so_far = ""
        if 0 < shown <= total:
            left = tqdm.format_interval((now - self._started) * (total / shown - 1))
            so_far = f", {shown / total:.0%} of the run, {left} left"
        sys.stderr.write(f"hadmst_sc: {self._text}{so_far}\n")

    def _make_room(self, _: logging.LogRecord) -> bool:
        """Clear the bar before a message of the logger; it is drawn again below."""
        if self._bar is not None:
            with suppress(Exception):
                self._bar.clear()
        return True


def say(text: str) -> None:
    """Print a line to stderr above the bar; nothing happens if stderr is closed, or ``None`` without a console."""
    from tqdm.auto import tqdm

    with suppress(Exception):
        if sys.stderr is not None:
            tqdm.write(text, file=sys.stderr)


def seconds_of(n_filters: float, obs: Observation) -> float:
    """Seconds of so many Gaussian filters of a map of a section, on this machine."""
    return n_filters * obs.grid.n_bins * seconds_of_a_filter()


def seconds_of_a_filter() -> float:
    """Seconds of a Gaussian filter, per bin."""
    sample = np.zeros((512, 512), np.float32)
    return shortest(lambda: ndimage.gaussian_filter(sample, 2.0)) / sample.size


def shortest(call: Callable[[], object], repeats: int = 3) -> float:
    """Seconds of the fastest of several calls."""
    call()  # warm-up
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)
