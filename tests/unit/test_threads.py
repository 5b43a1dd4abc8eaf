"""Work side by side gives what one after the other would, in order, and its errors."""

from __future__ import annotations

import threading

import pytest

from hadmst_sc.threads import MOST, cores, side_by_side


def test_results_are_in_the_order_of_the_pieces():
    assert side_by_side(lambda piece: piece**2, range(100)) == [piece**2 for piece in range(100)]
    assert side_by_side(str, []) == []


def test_pieces_run_at_the_same_time_on_as_many_cores_as_there_are():
    assert 1 <= cores() <= MOST
    meet = threading.Barrier(cores(), timeout=10)
    side_by_side(lambda _: meet.wait(), range(cores()))  # one after the other would wait in vain


def test_what_a_piece_raises_is_raised():
    def work(piece: int) -> int:
        if piece == 3:
            raise ValueError("the third")
        return piece

    with pytest.raises(ValueError, match="the third"):
        side_by_side(work, range(5))
