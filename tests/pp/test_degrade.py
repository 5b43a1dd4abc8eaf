"""Pseudo-spots: every molecule is where it was, once; the halves are disjoint."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.spatial.distance import cdist

from hadmst_sc.pp import degrade

UM = 0.5  # µm per unit


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    """3,000 cells over 800 × 600 µm, in units of half a µm, with an empty quarter."""
    rng = np.random.default_rng(0)
    xy = rng.uniform((100, -50), (900, 550), (3000, 2))
    xy = xy[~((xy[:, 0] > 500) & (xy[:, 1] > 250))]
    counts = sparse.csr_matrix(rng.poisson(rng.gamma(0.5, 2.0, (len(xy), 7))).astype(np.uint8))
    table = ad.AnnData(counts, var=pd.DataFrame({"kind": list("abcdefg")}, index=[f"gene-{i}" for i in range(7)]))
    table.obsm["spatial"] = xy / UM
    return table


def dense(table: ad.AnnData) -> np.ndarray:
    return table.X.toarray().astype(int)


def test_each_spot_counts_exactly_the_cells_within_its_disc(cells):
    spots = degrade(cells, um_per_unit=UM)
    inside = UM * cdist(spots.obsm["spatial"], cells.obsm["spatial"]) <= 27.5
    np.testing.assert_array_equal(dense(spots), inside.astype(int) @ dense(cells))
    np.testing.assert_array_equal(spots.obs["n_cells"], inside.sum(1))
    assert spots.obs["n_cells"].min() > 0 and spots.n_obs > 20


def test_counts_above_the_input_type_do_not_wrap():
    table = ad.AnnData(sparse.csr_matrix(np.full((100, 1), 200, np.uint8)))
    table.obsm["spatial"] = np.random.default_rng(0).uniform(0, 60, (100, 2))
    spots = degrade(table, spot_um=50.0)
    assert spots.n_obs == 1 and dense(spots).item() == 200 * spots.obs["n_cells"].item() > 255


def test_neighbours_are_one_pitch_away_and_the_array_index_says_where(cells):
    spots = degrade(cells, um_per_unit=UM, spot_um=40.0, pitch_um=80.0)
    distance = UM * cdist(spots.obsm["spatial"], spots.obsm["spatial"])
    np.testing.assert_allclose(np.sort(distance, 1)[:, 1], 80.0, atol=1e-9)
    row, column = spots.obs["array_row"].to_numpy(), spots.obs["array_col"].to_numpy()
    np.testing.assert_array_equal(row % 2, column % 2)  # as on a Visium slide
    step = UM * spots.obsm["spatial"] - np.c_[column * 40.0, row * 40.0 * np.sqrt(3)]
    np.testing.assert_allclose(step, np.broadcast_to(step[0], step.shape), atol=1e-9)
    assert set(row) >= {0, 1} or set(row) >= {1, 2}


def test_discs_lie_wholly_in_the_extent_of_the_cells(cells):
    xy, spots = cells.obsm["spatial"] * UM, degrade(cells, um_per_unit=UM).obsm["spatial"] * UM
    assert (spots >= xy.min(0) + 27.5 - 1e-6).all() and (spots <= xy.max(0) - 27.5 + 1e-6).all()
    np.testing.assert_allclose(spots.min(0), xy.min(0) + 27.5, atol=1e-6)


def test_a_spot_sits_at_the_origin(cells):
    origin = (1000.0, 400.0)  # units; far from the corner, and 100 µm from the empty quarter
    at = np.abs(degrade(cells, um_per_unit=UM, origin=(600.0, 300.0)).obsm["spatial"] - (600.0, 300.0)).sum(1)
    assert at.min() < 1e-9
    moved = degrade(cells, um_per_unit=UM, origin=origin).obsm["spatial"]
    period = np.array([100.0, 100.0 * np.sqrt(3)]) / UM
    same = degrade(cells, um_per_unit=UM, origin=origin + period).obsm["spatial"]
    np.testing.assert_allclose(moved, same, atol=1e-9)


def test_disjoint_halves_sum_to_the_whole(cells):
    spots, rest = degrade(cells, um_per_unit=UM, split=0.5)
    np.testing.assert_array_equal(
        dense(degrade(cells, um_per_unit=UM)), dense(spots) + dense(degrade(rest, um_per_unit=UM))
    )
    assert (rest.X.toarray() >= 0).all() and (dense(rest) <= dense(cells)).all()
    np.testing.assert_array_equal(rest.obsm["spatial"], cells.obsm["spatial"])


@pytest.mark.parametrize("split", [0.2, 0.5])
def test_the_share_of_molecules_is_the_split_within_four_standard_errors(cells, split):
    _, rest = degrade(cells, um_per_unit=UM, split=split)
    n = dense(cells).sum()
    assert abs(1 - dense(rest).sum() / n - split) < 4 * np.sqrt(split * (1 - split) / n)


def test_halves_are_independent_given_the_rate():
    table = ad.AnnData(sparse.csr_matrix(np.random.default_rng(0).poisson(5.0, (20000, 1))))
    table.obsm["spatial"] = np.random.default_rng(1).uniform(0, 100, (20000, 2))
    _, rest = degrade(table, split=0.5)
    # Halves of a Poisson count are independent; halves of the same molecules would correlate with ±1.
    assert abs(np.corrcoef(dense(rest)[:, 0], (dense(table) - dense(rest))[:, 0])[0, 1]) < 4 / np.sqrt(20000)


def test_the_same_seed_draws_the_same_and_the_cells_stay(cells):
    before = cells.copy()
    first, second, other = (degrade(cells, um_per_unit=UM, split=0.5, random_state=s)[0] for s in (1, 1, 2))
    np.testing.assert_array_equal(dense(first), dense(second))
    assert (dense(first) != dense(other)).any()
    np.testing.assert_array_equal(dense(before), dense(cells))
    assert list(before.obs) == list(cells.obs) and before.X.dtype == cells.X.dtype


def test_the_table_says_how_it_was_made_and_survives_the_disk(cells, tmp_path):
    spots = degrade(cells, um_per_unit=UM)
    spots.write_h5ad(tmp_path / "spots.h5ad")
    again = ad.read_h5ad(tmp_path / "spots.h5ad")
    assert again.uns == {"spot_diameter_um": 55.0, "pitch_um": 100.0, "um_per_unit": UM}
    assert again.var["kind"].tolist() == list("abcdefg") and again.X.dtype == np.float32


@pytest.mark.parametrize("form", [np.asarray, sparse.csc_matrix, "dask"])
def test_any_matrix_gives_the_same(cells, form):
    other = cells.copy()
    if form == "dask":
        other.X = pytest.importorskip("dask.array").from_array(cells.X.toarray(), chunks=(500, 7))
    else:
        other.X = form(cells.X.toarray())
    np.testing.assert_array_equal(dense(degrade(other, um_per_unit=UM)), dense(degrade(cells, um_per_unit=UM)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spot_um": 0}, "`spot_um` needs a positive number, but is 0"),
        ({"pitch_um": float("nan")}, "`pitch_um` needs a positive number, but is nan"),
        ({"pitch_um": 50.0}, "`pitch_um` needs at least `spot_um`=55, but is 50"),
        ({"split": 1.0}, "`split` needs a share between 0 and 1, or None, but is 1.0"),
        ({"um_per_unit": 1e-3}, r"the [\d,]+ cells, on 1\.\d+ × 1\.\d+ µm, are in none.*um_per_unit"),
    ],
)
def test_bad_arguments_are_named(cells, arguments, message):
    with pytest.raises(ValueError, match=message):
        degrade(cells, **arguments)


@pytest.mark.parametrize("value", [0.5, -1.0, np.nan])
def test_what_are_no_counts_is_named(cells, value):
    bad = cells.copy()
    bad.X = cells.X.astype(float)
    bad.X.data[3] = value
    with pytest.raises(ValueError, match=r"`cells.X` needs counts .* but 1 of its [\d,]+ stored values"):
        degrade(bad, um_per_unit=UM)


def test_cells_without_positions_are_named(cells):
    bad = cells.copy()
    bad.obsm["spatial"][5, 1] = np.nan
    with pytest.raises(ValueError, match=r"finite \(x, y\).* with 1 values that are not finite"):
        degrade(bad)
    del bad.obsm["spatial"]
    with pytest.raises(KeyError, match=r"obsm\['spatial'\]"):
        degrade(bad)
