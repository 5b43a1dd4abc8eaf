"""Reliability from SpatialData: the same before a run as in its result, with controls that tell image from chance."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd

from hadmst_sc import datasets, tl
from hadmst_sc.section.observation import RELIABILITY
from hadmst_sc.tl.reliability import shuffled

IMAGE = "phantom_full_image"
SETTINGS = {"model": None, "bin_um": 20.0}


@pytest.fixture(scope="module")
def section():
    sdata = datasets.phantom(seed=3, size_um=1600.0, n_genes=12, depth=(2.0, 40.0), style="glands", augment=False)
    tl.superresolve(sdata, IMAGE, show_progress_bar=False, **SETTINGS)
    return sdata


@pytest.fixture(scope="module")
def found(section):
    return tl.reliability(section, IMAGE, controls=True, **SETTINGS)


def test_before_a_run_and_in_its_result_it_is_the_same(section, found):
    var = section["superres_table"].var
    for column in RELIABILITY:
        np.testing.assert_allclose(var[column].astype(float), found.loc[var.index, column].astype(float), atol=1e-6)


def test_a_shuffled_and_a_shifted_image_help_few_genes(found, section):
    assert found["image_helps"].mean() > 0.8
    for control in ("shuffled", "shifted"):
        assert found[f"image_helps_{control}"].mean() < 0.4
        assert (found["reliability"] > found[f"reliability_{control}"]).mean() > 0.8
    helped = section["superres_table"].uns["hadmst_sc"]["image_helps"]
    assert helped["image"] == found["image_helps"].mean() and set(helped) == {"image", "shuffled", "shifted"}


def test_an_image_that_helps_no_more_than_its_controls_is_warned_of(caplog):
    sdata = datasets.phantom(seed=3, size_um=1000.0, n_genes=6)
    pixels = sdata[IMAGE]["scale0"]["image"]
    pixels[:] = np.random.default_rng(0).integers(0, 255, pixels.shape, np.uint8)
    with caplog.at_level(logging.WARNING, logger="hadmst_sc"):
        tl.reliability(sdata, IMAGE, controls=True, align=False, **SETTINGS)
    assert "it adds nothing to the spots" in caplog.text


def test_without_a_result_nothing_is_changed():
    sdata = datasets.phantom(n_genes=4)
    before = sdata["table"].var.copy()
    found = tl.reliability(sdata, IMAGE, genes=3, align=False, **SETTINGS)
    assert len(found) == 3 and "superres_table" not in sdata
    pd.testing.assert_frame_equal(sdata["table"].var, before)


def test_shuffling_moves_whole_squares_and_loses_none():
    y, x = shuffled((13, 17), 4, 0)
    values = np.arange(13 * 17).reshape(13, 17)
    moved = values[y, x]
    assert sorted(moved.ravel()) == sorted(values.ravel()) and (moved != values).mean() > 0.5
    assert (np.diff(moved[:12, :16].reshape(3, 4, 4, 4), axis=3) == 1).all()
    np.testing.assert_array_equal(moved[12], values[12])


def test_the_result_of_another_section_keeps_its_own(caplog):
    both = sd.concatenate({name: datasets.phantom(seed, n_genes=3, size_um=600.0) for seed, name in enumerate("ab")})
    for name in "ab":  # the genes of two sections of one experiment
        both[f"table-{name}"].var_names = ["x", "y", "z"]
    how = {"model": None, "bin_um": 40.0, "align": False, "show_progress_bar": False}
    tl.superresolve(both, f"{IMAGE}-a", table_key="table-a", **how)
    before = both["superres_table"].var.copy()
    with caplog.at_level(logging.INFO, "hadmst_sc"):
        found = tl.reliability(both, f"{IMAGE}-b", table_key="table-b", **how)
    assert "not added to tables/superres_table, which is of another section" in caplog.text
    pd.testing.assert_frame_equal(both["superres_table"].var, before)
    assert not np.allclose(found["reliability"], before["reliability"][found.index])


def test_a_result_that_was_made_otherwise_keeps_its_own(section, caplog):
    before = section["superres_table"].var["reliability"].copy()
    counts = section["table"].X
    section["table"].layers["other"] = counts[np.random.default_rng(0).permutation(counts.shape[0])]
    for how, told in (({"layer": "other"}, "layer=None"), ({"bin_um": 40.0}, "bin_um=20.0")):
        caplog.clear()
        tl.reliability(section, IMAGE, **(SETTINGS | how))
        assert f"not added to tables/superres_table, which was made with {told}" in caplog.text
    pd.testing.assert_series_equal(section["superres_table"].var["reliability"], before)
