"""Features from elsewhere: on the grid whatever their resolution, and refused with a remedy where they cannot be."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import sklearn.decomposition

from hadmst_sc.alignment.record import Alignment
from hadmst_sc.inference import prepare
from hadmst_sc.inference.cost import cost_of
from hadmst_sc.inference.prepare import image_features
from hadmst_sc.inference.settings import Settings
from hadmst_sc.phantom.simulate import simulate
from hadmst_sc.section.observation import Source
from hadmst_sc.tl import predict


@pytest.fixture(scope="module")
def phantom():
    return simulate(921_000, size_um=800.0, n_genes=6, augment=False, depth=(5.0, 40.0))


def ramp(side: int) -> np.ndarray:
    return ((np.arange(side) + 0.5) / side)[:, None] * np.ones(side)


@pytest.mark.parametrize("side", [20, 80, 240])
def test_any_resolution_covers_the_same_tissue(phantom, side):
    maps = image_features(ramp(side)[None], phantom.observation, None)
    ny, nx = phantom.observation.grid.shape
    assert maps.shape == (1, ny, nx)
    np.testing.assert_allclose(maps[0, 4:-4, 4:-4], ramp(ny)[4:-4, : nx - 8], atol=0.02)


@pytest.mark.parametrize("side", [8, 160])
def test_maps_cover_the_image_not_the_last_bins_beyond_it(phantom, side):
    """An image that ends in the middle of a bin: a map of its extent lies where the image does."""
    obs, (ny, nx) = phantom.observation, phantom.observation.grid.shape
    wide = 10.0  # pixels per bin
    height, width = round((ny - 0.9) * wide), nx * round(wide)
    source = Source("he", "table", "spots", "global", image_shape=(height, width))
    grid = replace(obs.grid, px_per_bin=wide)
    maps = image_features(ramp(side)[None], replace(obs, grid=grid, source=source), None)
    expected = (np.arange(ny) + 0.5) * wide / height
    np.testing.assert_allclose(maps[0, 8:-8, 3], expected[8:-8], atol=1e-3)


def test_a_callable_sees_the_image_and_its_scale(phantom):
    def model(he, um_per_px):
        assert he.dtype == np.uint8 and he.shape[0] == 3
        assert um_per_px == pytest.approx(phantom.observation.grid.bin_um / phantom.observation.he_per_bin)
        return he[:, ::4, ::4]

    assert image_features(model, phantom.observation, None).shape[0] == 3


def test_features_of_tiles_are_maps_once_each_tile_has_its_row_and_column(phantom):
    """As LazySlide and others make them: corners of tiles in pixels, one row of features per tile of tissue."""
    obs, side = phantom.observation, 32
    height, width = obs.he.shape[1:]
    corners = np.array([(x, y) for y in range(0, height, side) for x in range(0, width, side)])
    corners = corners[np.random.default_rng(0).permutation(len(corners))][: int(0.9 * len(corners))]
    of_tiles = (corners[:, 1:] + side / 2) / height

    at = corners // side
    maps = np.zeros((of_tiles.shape[1], *(at.max(0) + 1)[::-1]))
    maps[:, at[:, 1], at[:, 0]] = of_tiles.T

    found = image_features(maps, obs, None)[0]
    ny, nx = obs.grid.shape
    known = [(min(int((y + side / 2) / height * ny), ny - 1), int((x + side / 2) / width * nx)) for x, y in corners]
    values = np.array([found[one] for one in known if one[1] < nx])
    assert np.corrcoef(values, of_tiles[[one[1] < nx for one in known], 0])[0, 1] > 0.9


def test_features_are_read_where_the_image_was_found_to_lie(phantom):
    found = Alignment(20.0, 0.0, 0.0, 0.0, True)
    still = image_features(ramp(80)[None], phantom.observation, None)
    moved = image_features(ramp(80)[None], phantom.observation, found)
    step = 20.0 / phantom.observation.grid.bin_um / phantom.observation.grid.shape[0]
    np.testing.assert_allclose((moved - still)[0, 5:-8], step, atol=1e-3)


@pytest.mark.parametrize(
    ("features", "message"),
    [(np.zeros((4, 4)), "channels first"), (np.full((1, 4, 4), np.nan), "finite"), (np.zeros((0, 4, 4)), "shape")],
)
def test_bad_features_are_refused_with_a_remedy(phantom, features, message):
    with pytest.raises(ValueError, match=f"`features`.*{message}"):
        image_features(features, phantom.observation, None)


def test_features_that_need_too_much_memory_are_refused_and_the_remedy_works(phantom, monkeypatch):
    obs, n_bins = phantom.observation, phantom.observation.grid.n_bins
    features = np.random.default_rng(0).normal(size=(40, 12, 12)).astype(np.float32)
    costs = [cost_of(obs, Settings(model=None, features=one), backed=True).memory for one in (None, features)]
    assert costs[1] - costs[0] == prepare.PER_FEATURE * 40 * n_bins
    monkeypatch.setattr(prepare, "memory_limit", lambda: prepare.PER_FEATURE * 20 * n_bins)
    with pytest.raises(ValueError, match=r"`features`: 40 maps on .* need about .* GB of memory") as refused:
        image_features(features, obs, None)
    remedy = re.search("`(features = .*)`", str(refused.value)).group(1)
    given = {"features": features, "sklearn": sklearn}
    exec(remedy, given)  # as a user would
    assert image_features(given["features"], obs, None).shape == (10, *obs.grid.shape)


def test_features_that_know_the_truth_help(phantom):
    obs, truth = phantom.observation, phantom.rate
    oracle = np.log1p(truth / truth[:, obs.inside].mean(1)[:, None, None])

    def score(features):
        maps = predict(obs, model=None, align=False, features=features).mean[:, obs.inside]
        pairs = zip(np.log1p(maps), np.log1p(truth[:, obs.inside]), strict=True)
        return np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs])

    assert score(oracle) > score(None) + 0.05
