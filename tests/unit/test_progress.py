"""One bar over all stages: it moves at a steady pace, never back, and its trouble stops nothing."""

from __future__ import annotations

import io
import logging
import sys
import time
from itertools import pairwise

import pytest

import hadmst_sc as hd
from hadmst_sc.inference import progress as module
from hadmst_sc.inference.progress import Progress, say
from hadmst_sc.section.errors import logger


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Broken:
    """A stream to which nothing can be written."""

    def isatty(self) -> bool:
        return True

    def write(self, text):
        raise OSError("No space left on device")

    flush = write


class Clock:
    """Time that passes only when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def often(monkeypatch) -> None:
    monkeypatch.setattr(module, "DELAY", 0.0)
    monkeypatch.setattr(module, "TICK", 0.01)
    monkeypatch.setattr(module, "LINE_EVERY", 0.05)


def test_a_stage_counts_by_its_expected_seconds_and_follows_the_clock(clock):
    bar = Progress(show=False)
    bar.at("read")
    clock.now = 10.0
    bar.plan({"align": 20.0, "predict": 30.0})
    bar.at("align")
    positions = []
    for clock.now in (10.0, 15.0, 20.0, 25.0):
        positions.append(bar._position(clock.now))
    assert positions == pytest.approx([10.0, 15.0, 20.0, 25.0])  # steady
    clock.now = 30.0
    bar.at("predict")
    assert bar._position(30.0) == pytest.approx(30.0)
    bar.at("predict", 0.5)
    assert bar._position(30.0) == pytest.approx(45.0)
    assert bar.seconds == pytest.approx({"read": 10.0, "align": 20.0, "predict": 0.0})


def test_on_a_slower_machine_later_stages_are_slower(clock):
    bar = Progress(show=False)
    bar.plan({"align": 10.0, "distill": 10.0})
    bar.at("align")
    clock.now = 30.0  # three times as long as expected
    bar.at("distill")
    assert bar._position(45.0) == pytest.approx(15.0)


def test_a_stage_that_takes_too_long_never_stands_still_nor_goes_beyond_its_end(clock):
    bar = Progress(show=False)
    bar.plan({"align": 10.0, "distill": 90.0})
    bar.at("align")
    positions = [bar._position(float(now)) for now in range(40)]
    steps = [after - before for before, after in pairwise(positions)]
    assert min(steps) > 0 and positions[-1] < 10.0


def test_the_bar_never_goes_back(clock):
    bar = Progress(show=False)
    bar.plan({"predict": 100.0})
    bar.at("predict")
    assert bar._position(50.0) == pytest.approx(50.0)
    clock.now = 50.0
    bar.at("predict", 0.25)  # slower than expected
    assert bar._position(50.0) == pytest.approx(50.0)


def test_a_resumed_run_counts_only_what_is_left(clock):
    bar = Progress(show=False)
    bar.plan({"align": 50.0, "predict": 100.0})
    bar.shorten("align", 0.0)
    bar.shorten("predict", 0.1)
    bar.at("predict", 0.5)
    assert bar._position(0.0) == pytest.approx(5.0)


def test_on_a_terminal_the_bar_moves_while_a_stage_computes(often, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    with Progress(show=True) as bar:
        bar.plan({"align": 0.5})
        bar.at("align")
        time.sleep(0.3)
        logger.warning("the image is far")
    shown = [one for one in stream.getvalue().split("\r") if one.startswith("registering the image:")]
    assert len(set(shown)) > 10
    assert shown[-1].startswith("registering the image: 100%")


def test_a_message_of_the_logger_starts_on_a_clean_line(often, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    handler = logging.StreamHandler(stream)
    logger.logger.addHandler(handler)
    try:
        with Progress(show=True) as bar:
            bar.at("align")
            time.sleep(0.2)
            bar._ended.set()
            bar._thread.join()
            logger.warning("the image is far")
    finally:
        logger.logger.removeHandler(handler)
    before = stream.getvalue().split("the image is far")[0]
    assert before.endswith("\r") and not before.split("\r")[-2].strip()
    assert not logger.logger.filters


def test_a_log_file_gets_a_line_now_and_then(often, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    with Progress(show=True) as bar:
        bar.plan({"align": 0.4})
        bar.at("align")
        time.sleep(0.3)
    lines = stream.getvalue().splitlines()
    assert 2 <= len(lines) <= 6 and "\r" not in stream.getvalue()
    assert all(line.startswith("hadmst_sc: registering the image, ") and line.endswith(" left") for line in lines)


@pytest.mark.parametrize("stream", [None, Broken()], ids=["none", "full"])
def test_a_bar_that_cannot_be_written_stops_nothing(often, monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress(show=True) as bar:
        bar.at("align")
        time.sleep(0.1)
        say("nobody reads this")


@pytest.mark.torch
def test_verbs_show_one_bar_and_are_silent_on_request(often, monkeypatch):
    sdata = hd.datasets.phantom(n_genes=4, size_um=800.0)
    where = (sdata, "phantom_full_image")
    calls = {
        "registering": [
            lambda **show: hd.pp.register(*where, bin_um=20.0, **show),
            lambda **show: hd.pp.validate(*where, bin_um=20.0, **show),
        ],
        "distilling": [lambda **show: hd.tl.superresolve(*where, bin_um=20.0, model=None, copy=True, **show)],
        "scoring": [lambda **show: hd.tl.reliability(*where, bin_um=20.0, model=None, **show)],
    }
    for stage, verbs in calls.items():
        for verb in verbs:
            monkeypatch.setattr(sys, "stderr", stream := Terminal())
            verb()
            assert stage in stream.getvalue()
            monkeypatch.setattr(sys, "stderr", stream := Terminal())
            verb(show_progress_bar=False)
            assert "\r" not in stream.getvalue()
