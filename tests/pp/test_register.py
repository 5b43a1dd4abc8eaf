"""Registration from SpatialData is that of the arrays, and changes nothing."""

from __future__ import annotations

import numpy as np
import pytest

from hadmst_sc import datasets, pp
from hadmst_sc.alignment.register import estimate_alignment
from hadmst_sc.io import read_observation
from hadmst_sc.io.panel import with_other_genes

IMPOSED = (30.0, -20.0)


@pytest.fixture(scope="module")
def section():
    return datasets.phantom(
        seed=3, size_um=1400.0, n_genes=16, depth=(2.0, 40.0), augment=False, misregistration_um=IMPOSED
    )


def test_an_imposed_shift_is_found_within_a_bin(section):
    shift = pp.register(section, "phantom_full_image", genes=16)
    assert shift.applied and np.hypot(shift.dy_um - IMPOSED[0], shift.dx_um - IMPOSED[1]) < 10.0


def test_register_equals_estimate_alignment_of_what_is_read(section):
    obs = with_other_genes(section, read_observation(section, "phantom_full_image", genes=8, bin_um=20.0))
    shift = pp.register(section, "phantom_full_image", genes=8, bin_um=20.0, max_um=40.0)
    assert shift == estimate_alignment(obs, max_um=40.0)


def test_the_section_is_only_looked_at(section):
    before = (
        section["phantom_full_image"]["scale0"]["image"].to_numpy().copy(),
        section["table"].X.toarray(),
        repr(section),
    )
    pp.register(section, "phantom_full_image", genes=8, bin_um=20.0)
    np.testing.assert_array_equal(before[0], section["phantom_full_image"]["scale0"]["image"].to_numpy())
    np.testing.assert_array_equal(before[1], section["table"].X.toarray())
    assert before[2] == repr(section)


def test_a_wrong_key_lists_what_is_there(section):
    with pytest.raises(
        KeyError, match=r"`image_key='he'` is not in `sdata.images`\. Available: \['phantom_full_image'"
    ):
        pp.register(section, "he")
