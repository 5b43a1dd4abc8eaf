"""What a result tells of itself, before and after the disk."""

from __future__ import annotations

from html import escape

import pytest
import spatialdata as sd

import hadmst_sc as hd


@pytest.fixture(scope="module")
def solved():
    sdata = hd.datasets.phantom(3, n_genes=12, size_um=1000.0, depth=(5.0, 40.0))
    hd.tl.superresolve(sdata, "phantom_full_image", bin_um=20.0, show_progress_bar=False)
    return sdata


def test_it_tells_what_was_made_with_what_and_how_much_to_believe(solved):
    summary, table = hd.tl.summary(solved), solved["superres_table"]
    assert summary.facts["bins"] == f"{table.n_obs:,} in tissue, 20 µm wide"
    assert summary.facts["model"].startswith("default (")
    assert f"{(table.var['finest_um'] <= 55).sum()} at 55 µm" in summary.facts["reliability"]
    assert f"helps {table.var['image_helps'].sum()} of 12 genes" in summary.facts["reliability"]
    assert summary.genes["reliability"].is_monotonic_decreasing and set(summary.genes.index) == set(table.var_names)
    assert "2 genes between these are not shown" in str(summary)


def test_it_tells_whether_intervals_hold(solved):
    provenance = solved["superres_table"].uns["hadmst_sc"]
    record = {"coverage": 0.88, "n_spots": 1200}
    held = "90 % intervals hold 88% of the counts at 1,200 held-out spots"
    kept = provenance["calibration"]
    try:
        provenance["calibration"] = record
        assert hd.tl.summary(solved).facts["intervals"] == held
        provenance["calibration"] = record | {"coverage": 0.6}
        doubtful = "doubtful: 90% intervals hold 60% of the counts at held-out spots"
        assert hd.tl.summary(solved).facts["intervals"] == doubtful
        provenance["calibration"] = "off"
        assert hd.tl.summary(solved).facts["intervals"].startswith("doubtful: it was made by an earlier version")
    finally:
        provenance["calibration"] = kept


def test_it_survives_the_disk(solved, tmp_path):
    solved.write(tmp_path / "section.zarr")
    assert hd.tl.summary(sd.read_zarr(tmp_path / "section.zarr")).facts == hd.tl.summary(solved).facts


def test_a_notebook_shows_the_same_as_a_table(solved):
    summary = hd.tl.summary(solved)
    html = summary._repr_html_()
    assert all(escape(name) in html and escape(fact) in html for name, fact in summary.facts.items())
    assert summary.genes.index[0] in html


def test_the_closed_form_says_that_it_is_one(solved):
    hd.tl.superresolve(
        solved, "phantom_full_image", model=None, bin_um=20.0, align=False, key_added="closed", show_progress_bar=False
    )
    facts = hd.tl.summary(solved, key_added="closed").facts
    assert facts["model"] == "closed form, no network" and facts["H&E"] == "not registered"
    assert facts["intervals"].startswith("90 % intervals hold ")
    with pytest.raises(KeyError, match="key_added='other'"):
        hd.tl.summary(solved, key_added="other")
