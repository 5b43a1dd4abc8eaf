"""Bins as squares lie where their labels lie, and answer to the same ids."""

from __future__ import annotations

import numpy as np
import pytest
import spatialdata as sd

from hadmst_sc import datasets, tl


@pytest.fixture(scope="module")
def solved():
    sdata = datasets.phantom(n_genes=2, size_um=600.0)
    tl.superresolve(sdata, "phantom_full_image", bin_um=20.0, model=None, show_progress_bar=False)
    assert tl.bins_to_shapes(sdata) == "superres_squares"
    return sdata


def test_each_row_of_the_table_has_its_square_around_its_centre(solved):
    table, squares = solved["superres_table"], solved["superres_squares"]
    assert squares.index.tolist() == table.obs["bin_id"].tolist()
    placed = sd.transform(squares, to_coordinate_system="phantom")
    centres = np.column_stack([placed.geometry.centroid.x, placed.geometry.centroid.y])
    np.testing.assert_allclose(centres, table.obsm["spatial"], atol=1e-6)
    assert np.ptp(placed.geometry.area) < 1e-6 * placed.geometry.area.iloc[0]


def test_they_survive_the_disk_and_a_query(solved, tmp_path):
    solved.write(tmp_path / "section.zarr")
    again = sd.read_zarr(tmp_path / "section.zarr")
    low, high = solved["superres_table"].obsm["spatial"].min(0), solved["superres_table"].obsm["spatial"].mean(0)
    cut = sd.bounding_box_query(
        again["superres_squares"],
        axes=("x", "y"),
        min_coordinate=low,
        max_coordinate=high,
        target_coordinate_system="phantom",
    )
    assert 0 < len(cut) < len(again["superres_squares"])


def test_names_that_are_taken_or_missing_are_named(solved):
    with pytest.raises(ValueError, match="`shapes_key='superres'` is taken"):
        tl.bins_to_shapes(solved, shapes_key="superres")
    with pytest.raises(KeyError, match="there is no table 'other_table'"):
        tl.bins_to_shapes(solved, key_added="other")
