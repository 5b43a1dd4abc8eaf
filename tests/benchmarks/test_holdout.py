"""Hidden means hidden: what a method is given of a fold does not know the spots that it is scored on."""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module

import numpy as np
import pytest
from scipy.spatial import cKDTree

SECTIONS = ["phantom", pytest.param("st_mob_1", marks=pytest.mark.real)]


@pytest.fixture(params=SECTIONS)
def section(request, monkeypatch):
    """Name of a section, and its SpatialData by ``load``; counts of some spots can be made others."""
    import hadmst_sc as hd

    holdout = import_module("cases.holdout")  # the package has a function of that name

    name = request.param
    if name == "phantom":
        made = hd.datasets.phantom(3, n_genes=8, size_um=1000.0, style="voronoi", depth=(5.0, 40.0))
    else:
        request.getfixturevalue("data_dir")
        try:
            made = hd.datasets.load(name)
        except FileNotFoundError as missing:
            pytest.skip(str(missing))
    spots: list[str] = []

    def load(asked):
        assert asked == name
        if not spots:
            return made
        table = made.tables["table"].copy()
        counts = table.X.toarray() if hasattr(table.X, "toarray") else np.array(table.X)
        counts[table.obs_names.isin(spots)] = 999
        table.X = counts
        region = table.uns["spatialdata_attrs"]["region"]
        region = region if isinstance(region, str) else region[0]
        images = {key: made.images[key] for key in made.images}
        return type(made)(images=images, shapes={region: made.shapes[region]}, tables={"table": table})

    monkeypatch.setattr(holdout, "load", load)
    genes = tuple(made.tables["table"].var_names[:3])
    return name, genes, spots


def same(a, b) -> bool:
    if hasattr(a, "matrix"):
        return a.matrix.shape == b.matrix.shape and (a.matrix != b.matrix).nnz == 0
    return np.array_equal(a, b)


@pytest.mark.parametrize("how", ["random", "blocks"])
def test_a_fold_does_not_change_with_the_counts_of_its_hidden_spots(section, how):
    from cases.holdout import split

    name, genes, spots = section
    whole, (part,), fold = split(name, genes, 20.0, how, n_folds=1)
    hidden = [spot for spot, own in zip(whole.spots, fold, strict=True) if own == 0]
    assert hidden and not set(hidden) & set(part.spots)
    assert set(part.spots) <= set(whole.spots) and len(part.spots) > len(whole.spots) / 2
    spots += hidden
    other, (again,), _ = split(name, genes, 20.0, how, n_folds=1)
    assert (other.counts[fold == 0] == 999).all()  # the counts did change
    assert [f.name for f in fields(part) if not same(getattr(part, f.name), getattr(again, f.name))] == []


def test_tissue_is_found_without_the_hidden_spots(section):
    from cases.holdout import split

    name, genes, _ = section
    whole, parts, fold = split(name, genes, 20.0, "blocks")
    outside = 0
    for k, part in enumerate(parts):
        assert part.inside[part.measurement.coverage > 0].all()
        away = (whole.measurement.subset(np.flatnonzero(fold == k)).coverage > 0) & whole.inside
        outside += (away & ~part.inside).sum() if part.grid == whole.grid else 1
    assert outside > 0  # a block in a corner is too far from any spot that is left


def test_hidden_spots_are_neither_in_the_table_nor_on_the_image(section):
    holdout = import_module("cases.holdout")
    name, _, _ = section
    sdata = holdout.load(name)
    names = sdata.tables["table"].obs_names
    hidden = np.arange(len(names)) % 3 == 0
    part = holdout.hide(sdata, hidden)
    (shapes,) = part.shapes.values()
    ids = part.tables["table"].obs["spot_id"]
    assert list(part.tables["table"].obs_names) == list(names[~hidden])
    assert set(ids) == set(shapes.index) and len(shapes) == (~hidden).sum()


def test_footprints_of_hidden_spots_are_those_of_the_whole_section(section):
    from cases.holdout import footprints, split

    name, genes, _ = section
    whole, (part,), fold = split(name, genes, 20.0, n_folds=1)
    rows = np.flatnonzero(fold == 0)
    found = footprints(whole, part, rows)
    if part.grid == whole.grid:
        assert abs(found.matrix - whole.measurement.subset(rows).matrix).max() < 1e-6
    np.testing.assert_allclose(
        found.centres * part.grid.px_per_bin, whole.measurement.centres[rows] * whole.grid.px_per_bin
    )


def test_what_a_method_says_of_hidden_spots_is_what_is_scored(section):
    from cases.holdout import folds, holdout, split

    from hadmst_sc.section.measurement import degrade
    from hadmst_sc.section.observation import Prediction

    name, _, _ = section
    case = holdout(section=name, n_genes=3, bin_um=20.0)
    _, parts, fold = split(name, case.section.genes, 20.0)
    np.testing.assert_array_equal(fold, folds(len(case.section.spots)))

    def prediction(obs, maps):
        return Prediction(obs.grid, obs.genes, maps.astype(np.float32), None, obs.inside, obs.measurement.coverage)

    assert sorted(s for part in parts for s in set(case.section.spots) - set(part.spots)) == sorted(case.section.spots)
    copies = []
    for given in case.given:  # what it is given, and nothing elsewhere
        maps = (given.measurement.matrix.T @ given.counts).T.reshape(-1, *given.grid.shape)
        copies.append(prediction(given, maps))
    np.testing.assert_allclose(case.score(copies)["spots"]["pcc"], 0, atol=0.1)
    whole = case.section
    if all(part.grid == whole.grid for part in parts):  # the spots themselves would be right, were they known
        maps = np.zeros((len(whole.genes), *whole.grid.shape))
        share = whole.measurement.matrix.multiply(1 / whole.measurement.area[:, None]).tocsr()
        maps.reshape(len(maps), -1)[:] = (share.T @ (whole.counts / whole.measurement.area[:, None])).T
        told = degrade(maps.astype(np.float32), whole.measurement)
        assert case.score([prediction(part, maps) for part in parts])["spots"]["pcc"].min() > 0.9, told


@pytest.mark.parametrize("n_spots", [7, 64, 2698])
def test_folds_are_a_partition_into_equal_parts(n_spots):
    from cases.holdout import folds

    sizes = np.bincount(folds(n_spots), minlength=4)
    assert sizes.sum() == n_spots
    assert sizes.max() - sizes.min() <= 1
    np.testing.assert_array_equal(folds(n_spots), folds(n_spots))


def lattice(kind: str, n: int = 24) -> np.ndarray:
    row, column = np.indices((n, n)).reshape(2, -1).astype(float)
    if kind == "hexagonal":
        row, column = row * np.sqrt(3) / 2, column + 0.5 * (row % 2)
    return 5 * np.stack([row, column], 1) + 3 + 0.05 * np.random.default_rng(0).standard_normal((n * n, 2))


@pytest.mark.parametrize("kind", ["square", "hexagonal"])
def test_block_folds_hide_squares_of_four_pitches_each_spot_once(kind):
    from cases.holdout import BLOCK, N_FOLDS, block_folds

    centres = lattice(kind)
    fold = block_folds(centres, 5.0)
    assert fold.shape == (len(centres),) and set(fold) == set(range(N_FOLDS))
    square = np.floor((centres - centres.min(0)) / (BLOCK * 5.0) + 1e-6).astype(int)
    of_squares = {}
    for place, own in zip(map(tuple, square), fold, strict=True):
        of_squares.setdefault(place, set()).add(int(own))
    assert all(len(own) == 1 for own in of_squares.values())
    sizes = np.bincount([own for (own,) in of_squares.values()])
    assert sizes.max() - sizes.min() <= 1
    assert max(np.ptp(centres[(square == place).all(1)], axis=0).max() for place in of_squares) <= BLOCK * 5.0
    np.testing.assert_array_equal(fold, block_folds(centres + 100, 5.0))


def test_spots_within_a_hidden_block_have_no_visible_neighbour():
    from cases.holdout import block_folds, folds

    centres = lattice("square")
    near = cKDTree(centres).query(centres, k=5)[1][:, 1:]

    def alone(fold):
        return np.mean((fold[near] == fold[:, None]).all(1))

    assert alone(block_folds(centres, 5.0)) > 0.2 > 10 * alone(folds(len(centres)))


def test_of_a_panel_only_the_wanted_genes_are_scored_and_described(section):
    from cases.holdout import _hold_out, split

    from hadmst_sc.section.observation import Prediction

    name, genes, _ = section
    case = _hold_out(*split(name, genes, 20.0, n_folds=1), n_scored=2)
    (given,) = case.given
    ones = np.ones((3, *given.grid.shape), np.float32)
    found = case.score([Prediction(given.grid, genes, ones, None, given.inside, given.measurement.coverage)])["spots"]
    assert len(found["pcc"]) == 2 == len(case.about()["genes"])
    assert len(case.references["split-half ceiling"]()["spots"]["pcc"]) == 2
    assert len(given.genes) == 3
