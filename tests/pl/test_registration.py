"""The picture of a registration shows the displacement that was recorded, where the spots are."""

from __future__ import annotations

from dataclasses import asdict

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import EllipseCollection

import hadmst_sc as hd
from hadmst_sc.alignment.record import Alignment, Field
from hadmst_sc.io.elements import plain

SPOTS_UM = np.array([[60.0, 50.0], [160.0, 50.0], [110.0, 130.0]])  # (x, y)
FIELD = Field((-600.0, -600.0), 600.0, (4, 4), (5.0,) * 16, (-3.0,) * 16)
FOUND = Alignment(10.0, 0.0, 0.2, 0.31, True, 2.0, (80.0, 100.0), FIELD, (1.0, 5.0, 2.0, 1.5), 3)


def test_arrows_lie_at_the_spots_and_are_what_was_found(registered):
    left, right = hd.pl.registration(registered(plain(asdict(FOUND))))
    circles = next(one for one in left.collections if isinstance(one, EllipseCollection))
    np.testing.assert_allclose(circles.get_offsets(), SPOTS_UM, atol=1e-9)
    arrows = right.collections[0]
    np.testing.assert_allclose(np.c_[arrows.X, arrows.Y], SPOTS_UM, atol=1e-9)
    expected = FOUND.displacement_um(SPOTS_UM[:, ::-1])[:, ::-1]
    np.testing.assert_allclose(np.c_[arrows.U, arrows.V], expected, atol=1e-9)
    np.testing.assert_allclose(arrows.get_array(), np.hypot(*expected.T))
    assert right.get_title() == "shift (y +10, x +0) µm, +2.0°, field\nleave-one-out R² 0.200 → 0.310"


def test_what_lies_in_place_is_said_to(registered):
    nothing = plain(asdict(Alignment(0.0, 0.0, 0.25, 0.25, False)))
    axes = hd.pl.registration(registered(nothing))
    assert axes[1].get_title() == "in place: nothing applied (R² 0.250)"
    assert not np.hypot(axes[1].collections[0].U, axes[1].collections[0].V).any()


def test_a_result_without_registration_says_how_to_get_one(registered):
    with pytest.raises(ValueError, match=r"its `registration` is 'off'\. Call .*superresolve\(.*align=True"):
        hd.pl.registration(registered("off"))


def test_other_numbers_of_axes_are_refused(registered):
    with pytest.raises(ValueError, match="`axes` needs two Axes, but has 3"):
        hd.pl.registration(registered(plain(asdict(FOUND))), axes=plt.subplots(1, 3)[1])
