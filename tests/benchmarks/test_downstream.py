"""Known answers of what users do next: domains, Moran's I, cell types that lie together."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

SHAPE = (40, 40)
EVERY = np.ones(SHAPE, bool)


def four_domains() -> tuple[np.ndarray, np.ndarray]:
    """``(genes, 40, 40)`` rates of four quadrants, each with genes of its own, and which quadrant a bin is in."""
    y, x = np.indices(SHAPE)
    region = 2 * (y >= 20) + (x >= 20)
    own = np.random.default_rng(0).permutation(np.arange(24) % 4)
    return np.where(own[:, None, None] == region, 6.0, 1.5) * np.linspace(0.5, 2, 24)[:, None, None], region


# --- domains ----------------------------------------------------------------------------------------------------------


def test_domains_of_noisy_quadrants_are_the_quadrants_at_any_depth():
    from downstream import domain_ari_bins, domains

    rate, region = four_domains()
    inside = EVERY.copy()
    inside[:3] = False
    maps = np.random.default_rng(1).poisson(4 * rate) * np.random.default_rng(2).uniform(0.5, 2, SHAPE)
    labels = domains(maps, inside, 4, seed=0)
    assert labels.shape == SHAPE
    assert (labels[~inside] == -1).all()
    assert set(labels[inside]) == {0, 1, 2, 3}
    assert domain_ari_bins(labels, region, inside) > 0.98
    np.testing.assert_array_equal(labels, domains(maps, inside, 4, seed=0))
    np.testing.assert_array_equal(labels, domains(maps / 16, inside, 4, seed=0))  # bins of a quarter of the edge
    polluted = np.where(inside, maps, 99.0)
    np.testing.assert_array_equal(labels, domains(polluted, inside, 4, seed=0))


def test_bins_with_next_to_nothing_in_them_are_no_domain_of_their_own():
    from downstream import domains

    rate, region = four_domains()
    maps = 40 * rate
    empty = np.zeros(SHAPE, bool)
    empty[::7, ::7] = True
    # One molecule each: as shares, the most extreme bins of all.
    maps[:, empty] = np.random.default_rng(3).multinomial(1, np.ones(24) / 24, empty.sum()).T
    labels = domains(np.random.default_rng(4).poisson(maps).astype(float), EVERY, 4, seed=0)
    for quadrant in range(4):
        assert len(set(labels[(region == quadrant) & ~empty])) == 1


def test_empty_and_constant_maps_have_domains_too():
    from downstream import domains

    for maps in (np.zeros((5, *SHAPE)), np.ones((5, *SHAPE))):
        with pytest.warns(match="distinct clusters"):
            assert set(domains(maps, EVERY, 3, seed=0).ravel()) <= {0, 1, 2}


def test_spots_are_clustered_by_the_recipe_of_bins(make_section):
    from downstream import domains, domains_of_spots

    counts = np.random.default_rng(5).poisson(4 * four_domains()[0])
    flat = counts.reshape(24, -1).T
    np.testing.assert_array_equal(domains_of_spots(flat, 4, 0), domains(counts, EVERY, 4, 0).ravel())


@pytest.fixture
def obs(make_section):
    return make_section(lambda y, x: np.array([1 + 0 * y]))


def test_majority_in_a_footprint_is_by_area_and_nothing_is_minus_one(obs):
    from downstream import domains_in_spots

    # The first spot is a disc of 2.75 bins about (2.5, 2.5): most of it is in the bins from x = 2 on.
    labels = np.where(np.arange(40) < 2, 0, 1) * np.ones((40, 1), int)
    assert domains_in_spots(labels, obs.measurement)[0] == 1
    labels[:, :3], labels[:, 3:] = 2, 1
    assert domains_in_spots(labels, obs.measurement)[0] == 2
    labels[:5, :5] = -1
    assert domains_in_spots(labels, obs.measurement)[0] == -1
    assert (domains_in_spots(np.full(SHAPE, -1), obs.measurement) == -1).all()


def test_ari_of_spots_knows_perfect_renamed_and_chance_and_leaves_out_what_has_no_name(obs):
    from downstream import domain_ari_spots, domains_in_spots

    region = four_domains()[1]
    names = np.array(["L1", "L2", "L3", "L4"], object)[domains_in_spots(region, obs.measurement)]
    assert domain_ari_spots(region, obs, names) == 1
    assert domain_ari_spots(3 - region, obs, names) == 1
    assert domain_ari_spots(np.zeros(SHAPE, int), obs, names) == 0
    wrong = names.copy()
    wrong[:8] = "L4"
    assert 0 < domain_ari_spots(region, obs, wrong) < 1
    for missing in (None, np.nan):
        wrong[:8] = missing
        assert domain_ari_spots(region, obs, wrong) == 1
    with pytest.raises(ValueError, match="one name for each of 64 spots, but has 3"):
        domain_ari_spots(region, obs, names[:3])
    with pytest.raises(ValueError, match="all are missing"):
        domain_ari_spots(region, obs, np.full(64, np.nan))


def test_ari_of_bins_is_that_of_the_formula_and_only_of_annotated_bins_inside():
    from downstream import domain_ari_bins

    truth = np.array([[0, 0, 0, 1, 1, 1, -1, 5]])
    labels = np.array([[0, 0, 1, 1, 2, 2, 3, 4]])
    inside = np.array([[True] * 7 + [False]])
    # Hubert & Arabie 1985, their example: pairs together in both 2, in labels 3, in truth 6, of 15.
    assert domain_ari_bins(labels, truth, inside) == pytest.approx((2 - 3 * 6 / 15) / ((3 + 6) / 2 - 3 * 6 / 15))


def test_spots_bring_their_domain_to_the_nearest_bins(obs):
    from downstream import domain_ari_bins, domains_to_bins

    found = domains_to_bins(np.arange(64), obs)
    np.testing.assert_array_equal(
        found[obs.inside], (np.arange(64).reshape(8, 8).repeat(5, 0).repeat(5, 1))[obs.inside]
    )
    assert (found[~obs.inside] == -1).all()
    assert domain_ari_bins(found, np.arange(64).reshape(8, 8).repeat(5, 0).repeat(5, 1), obs.inside) == 1


# --- Moran's I --------------------------------------------------------------------------------------------------------


def test_morans_i_of_chessboard_halves_noise_and_constants():
    from downstream import morans_i

    y, x = np.indices(SHAPE)
    board, halves, noise = (y + x) % 2, x >= 20, np.random.default_rng(6).gamma(2, 1, SHAPE)
    found = morans_i(np.stack([board, halves, noise, 0 * x, 0 * x + 1 / 3]).astype(float), EVERY)
    # Of 3,120 pairs, 40 are across the middle: I = (3,080 - 40) / 3,120.
    assert found[:2] == pytest.approx([-1, 3040 / 3120])
    assert abs(found[2]) < 4 / np.sqrt(3120)
    assert (found[3:] == 0).all()


def test_morans_i_is_the_double_sum_over_neighbours_inside():
    from downstream import morans_i

    rng = np.random.default_rng(7)
    inside = rng.random((7, 9)) < 0.7
    maps = rng.gamma(2, 2, (2, 7, 9))
    at = np.argwhere(inside)
    weights = (np.abs(at[:, None] - at[None]).sum(2) == 1).astype(float)
    for values, found in zip(maps, morans_i(np.where(inside, maps, 99.0), inside), strict=True):
        z = np.log1p(values[inside])
        z = z - z.mean()
        assert found == pytest.approx(len(z) / weights.sum() * (z @ weights @ z) / (z @ z))


def test_moran_agreement_is_of_ranks():
    from downstream import moran_agreement

    noise = np.random.default_rng(8).standard_normal((5, *SHAPE))

    def smooth(*sigmas):
        fields = [gaussian_filter(n, sigma) for n, sigma in zip(noise, sigmas, strict=True)]
        return np.stack([np.exp(field / field.std()) for field in fields])

    maps = smooth(0, 0.5, 1, 2, 4)
    assert moran_agreement(maps, maps, EVERY) == pytest.approx(1)
    assert moran_agreement(smooth(0.7, 1.3, 2, 3, 6), maps, EVERY) == pytest.approx(
        1
    )  # all smoother, in the same order
    assert moran_agreement(maps[::-1], maps, EVERY) == pytest.approx(-1)
    assert moran_agreement(maps[[1, 0, 2, 3, 4]], maps, EVERY) == pytest.approx(1 - 6 * 2 / (5 * 24))
    assert moran_agreement(np.ones_like(maps), maps, EVERY) == 0
    maps[0] = 0  # a gene without counts has I = 0, and the others keep their ranks
    assert moran_agreement(maps, maps, EVERY) == pytest.approx(1)


# --- co-localisation --------------------------------------------------------------------------------------------------

MARKERS = {"A": ["a1", "a2", "absent"], "B": ["b"], "C": ["c"], "nobody": ["none"]}
GENES = ("c", "a1", "other", "b", "a2")


def _types() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three chequered maps that do not correlate, ±1."""
    y, x = np.indices(SHAPE)
    return tuple(np.where(odd, 1.0, -1.0) for odd in (y // 4 % 2, x // 4 % 2, (y + x) % 2))


def maps_of(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    return np.expm1(
        3 + np.stack([c, a, np.cos(a), 0.5 * b, 2 * a])
    )  # in the order of GENES; a type's size is no matter


def test_colocalisation_of_the_same_opposite_and_constant_maps():
    from downstream import colocalisation

    u, v, _ = _types()
    truth = maps_of(u, u, v)  # A and B together (1), C apart from both (0)
    same = colocalisation(truth, truth, EVERY, GENES, MARKERS)
    assert same == pytest.approx({"correlation": 1, "rms": 0, "n_types": 3})
    other = colocalisation(maps_of(u, v, u), truth, EVERY, GENES, MARKERS)  # A and C in place of A and B
    assert other == pytest.approx({"correlation": -0.5, "rms": np.sqrt(2 / 3), "n_types": 3})
    against = colocalisation(maps_of(u, -u, v), truth, EVERY, GENES, MARKERS)
    assert against == pytest.approx({"correlation": -1, "rms": np.sqrt(4 / 3), "n_types": 3})
    flat = colocalisation(np.ones_like(truth), truth, EVERY, GENES, MARKERS)
    assert flat == pytest.approx({"correlation": 0, "rms": np.sqrt(1 / 3), "n_types": 3})


def test_colocalisation_sees_types_that_are_too_much_together_in_rms_only():
    from downstream import colocalisation

    u, v, w = _types()
    truth = maps_of(u, np.where(np.arange(40) % 4 < 2, u, v), w)
    mixed = maps_of(u, u, w)
    found = colocalisation(mixed, truth, EVERY, GENES, MARKERS)
    assert found["correlation"] == pytest.approx(1, abs=0.01)
    assert found["rms"] > 0.2


def test_colocalisation_ignores_the_background_and_needs_three_types():
    from downstream import colocalisation

    truth, inside = maps_of(*_types()), EVERY.copy()
    inside[:, 30:] = False
    assert colocalisation(np.where(inside, truth, 9.0), truth, inside, GENES, MARKERS)["rms"] == pytest.approx(0)
    with pytest.raises(ValueError, match="at least 3 cell types, but have those of 2"):
        colocalisation(truth, truth, EVERY, GENES, {"A": ["a1"], "B": ["b"], "C": ["absent"]})


@pytest.mark.real
def test_every_breast_marker_is_on_the_panel_and_marks_one_type():
    from downstream import BREAST_MARKERS

    from hadmst_sc.datasets import load_cells

    try:
        panel = set(load_cells("xenium_breast_crop").var_names)
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    named = [gene for genes in BREAST_MARKERS.values() for gene in genes]
    assert set(named) <= panel
    assert len(named) == len(set(named))
