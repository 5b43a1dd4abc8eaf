"""Laws of the disturbances: nothing at strength zero, the right amount otherwise, and nothing else touched."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from scipy import ndimage

from hadmst_sc.section.grid import Grid
from hadmst_sc.section.measurement import discs
from hadmst_sc.section.observation import Observation, Source

NOTHING = {
    "misregistration_um": 0.0,
    "warp_um": 0.0,
    "counts_share": 1.0,
    "blur_um": 0.0,
    "stain": 0.0,
    "pitch_factor": 1,
}
SOME = {
    "misregistration_um": 45.0,
    "warp_um": 20.0,
    "counts_share": 0.5,
    "blur_um": 20.0,
    "stain": 1.0,
    "pitch_factor": 2,
}
CHANGES = {
    "misregistration_um": {"he"},
    "warp_um": {"he"},
    "counts_share": {"counts"},
    "blur_um": {"he"},
    "stain": {"he"},
    "pitch_factor": {"measurement", "counts", "spots"},
}


def same(a, b) -> bool:
    if hasattr(a, "matrix"):
        return a.matrix.shape == b.matrix.shape and (a.matrix != b.matrix).nnz == 0
    return np.array_equal(a, b)


def changed(a: Observation, b: Observation) -> set[str]:
    return {f.name for f in fields(a) if not same(getattr(a, f.name), getattr(b, f.name))}


@pytest.fixture
def obs(make_section):
    return make_section(lambda y, x: np.array([5 + np.sin(y / 5), 1 + 0 * x]), noise=True)


@pytest.mark.parametrize("name", NOTHING)
def test_each_changes_what_it_says_alike_twice_and_nothing_at_strength_zero(obs, name):
    from disturb import DISTURBANCES

    assert DISTURBANCES.keys() == NOTHING.keys()
    disturb = DISTURBANCES[name]
    before = obs.he.copy(), obs.counts.copy()
    assert changed(disturb(obs, NOTHING[name]), obs) == set()
    assert changed(disturb(obs, SOME[name]), obs) == CHANGES[name]
    assert changed(disturb(obs, SOME[name]), disturb(obs, SOME[name])) == set()
    assert (obs.he == before[0]).all() and (obs.counts == before[1]).all()


def test_the_image_moves_by_its_distance_towards_the_angle_and_its_edge_fills(obs):
    from disturb import shift_image

    # 10 µm per pixel: whole pixels move exactly.
    right = shift_image(obs, 30.0, angle_deg=0.0).he
    np.testing.assert_array_equal(right[:, :, 3:], obs.he[:, :, :-3])
    np.testing.assert_array_equal(right[:, :, :3], np.repeat(obs.he[:, :, :1], 3, 2))
    down = shift_image(obs, 20.0, angle_deg=90.0).he
    np.testing.assert_array_equal(down[:, 2:], obs.he[:, :-2])
    spot = np.zeros_like(obs.he)
    spot[:, 38:42, 38:42] = 200
    moved = shift_image(replace(obs, he=spot), 57.0).he[0].astype(float)
    centre = (np.indices(moved.shape) * moved).sum((1, 2)) / moved.sum()
    assert 10 * (centre - 39.5) == pytest.approx([57 * np.sin(np.pi / 6), 57 * np.cos(np.pi / 6)], abs=0.5)


@pytest.mark.parametrize("um", [10.0, 30.0])
def test_a_bent_image_is_displaced_by_about_what_was_asked_and_smoothly(obs, um):
    from disturb import warp_image

    ramp = np.stack([*(2.5 * np.indices((80, 80)) + 25), np.zeros((80, 80))])  # brightness tells where a pixel was
    places = warp_image(replace(obs, he=ramp.astype(np.uint8)), um).he.astype(float)
    moved_um = (places - ramp.astype(np.uint8))[:2] / 2.5 * 10
    inner = moved_um[:, 10:-10, 10:-10]  # where the edge of the image was not met
    assert np.sqrt((inner**2).sum(0).mean()) == pytest.approx(um, rel=0.35)
    assert np.sqrt((moved_um**2).sum(0).mean()) == pytest.approx(um, rel=0.3)
    field = ndimage.gaussian_filter(inner, (0, 2, 2))
    steps = np.abs(np.diff(field, axis=1)).max(), np.abs(np.diff(field, axis=2)).max()
    assert max(steps) < 0.5 * 10  # µm per pixel of 10 µm: nothing folds
    assert np.corrcoef(field[0, :-5].ravel(), field[0, 5:].ravel())[0, 1] > 0.8  # over 50 µm it changes little


def test_an_image_bends_otherwise_with_another_seed(obs):
    from disturb import warp_image

    assert (warp_image(obs, 20.0, seed=1).he != warp_image(obs, 20.0).he).any()


def test_thinned_counts_are_a_binomial_share(obs):
    from disturb import thin_counts

    many = replace(obs, counts=np.full((64, 2), 10_000, np.float32))
    thin = thin_counts(many, 0.3)
    assert thin.counts.dtype == np.float32
    assert thin.counts.mean() == pytest.approx(3000, abs=4 * np.sqrt(2100 / 128))
    assert thin.counts.std() == pytest.approx(np.sqrt(2100), rel=0.25)
    assert (thin_counts(obs, 0.5).counts <= obs.counts).all()
    assert (thin_counts(obs, 0.0).counts == 0).all()
    assert (thin_counts(obs, 0.5, seed=1).counts != thin_counts(obs, 0.5).counts).any()
    with pytest.raises(ValueError, match="from 0 to 1, but is 2"):
        thin_counts(obs, 2.0)
    with pytest.raises(ValueError, match="whole numbers"):
        thin_counts(replace(obs, counts=obs.counts + 0.5), 0.5)


def test_blur_spreads_a_point_by_sigma(obs):
    from disturb import blur_image

    point = np.zeros_like(obs.he)
    point[:, 36:44, 36:44] = 240
    seen = blur_image(replace(obs, he=point), 40.0).he[0].astype(float)
    y = np.arange(80) - 39.5
    variance = (seen.sum(1) * y**2).sum() / seen.sum()
    assert variance == pytest.approx(4.0**2 + (8**2 - 1) / 12, rel=0.05)  # of the Gaussian and of the square, in px


def painted(obs, haematoxylin, eosin, glass=255):
    """A section of even dyes, with Ruifrok's colours, and a strip of bare glass at its top."""
    from disturb import STAINS_HERE

    density = np.array([haematoxylin, eosin]) @ (STAINS_HERE / np.linalg.norm(STAINS_HERE, axis=1, keepdims=True))
    he = np.broadcast_to(np.rint(glass * np.exp(-density))[:, None, None], obs.he.shape).astype(np.uint8)
    he[:, :10] = glass
    return replace(obs, he=he)


@pytest.mark.parametrize("glass", [255, 180])  # underexposed glass is no dye
def test_stain_of_another_laboratory_is_that_of_its_dyes(obs, glass):
    from disturb import BACKGROUND_THERE, STAINS_THERE, shift_stain

    white = shift_stain(painted(obs, 0.5, 0.5, glass), 1.0).he[:, 0, 0]
    np.testing.assert_array_equal(white, np.rint(glass * BACKGROUND_THERE))
    there = STAINS_THERE / np.linalg.norm(STAINS_THERE, axis=1, keepdims=True)
    for dyes in ((0.8, 0.0), (0.0, 0.8), (0.6, 0.5)):
        expected = glass * BACKGROUND_THERE * np.exp(-np.array([1.3 * dyes[0], 0.75 * dyes[1]]) @ there)
        np.testing.assert_allclose(shift_stain(painted(obs, *dyes, glass), 1.0).he[:, -1, -1], expected, atol=2)


def test_stain_changes_more_with_strength_and_not_beyond_what_is_realistic(obs):
    from disturb import shift_stain

    tissue = painted(obs, 0.5, 0.5)
    change = [np.abs(shift_stain(tissue, s).he.astype(float) - tissue.he).mean() for s in (0.25, 0.5, 0.75, 1.0)]
    assert (np.diff(change) > 0).all()
    assert 5 < change[-1] < 40  # of 255


def section(kind: str, *, turn: float = 0.0, jitter: float = 0.0, missing: float = 0.0, n: int = 24, seed: int = 0):
    """Spots 5 bins apart, ``(y, x)``, and where each is on the array."""
    rng = np.random.default_rng(seed)
    row, column = np.indices((n, n)).reshape(2, -1)
    hexagonal = kind == "hexagonal"
    points = np.stack([row * (np.sqrt(3) / 2 if hexagonal else 1.0), column + hexagonal * 0.5 * (row % 2)], 1)
    points = 5 * points @ [[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]
    points += jitter * 5 * rng.standard_normal(points.shape)
    points -= points.min(0) - 3
    kept = rng.random(len(points)) >= missing
    return points[kept], row[kept], column[kept]


def observed(points: np.ndarray) -> Observation:
    shape = tuple(np.ceil(points.max(0) + 3).astype(int))
    grid, spots = Grid(shape, 20.0, 1.0), tuple(f"s{i}" for i in range(len(points)))
    source = Source("i", "t", "s", "global", spot_um=55.0, pitch_um=100.0)
    counts = np.arange(len(points), dtype=np.float32)[:, None]
    he = np.zeros((3, *shape), np.uint8)
    inside = np.ones(shape, bool)
    return Observation(grid, he, 20.0, discs(points, 2.75, shape), counts, ("g",), spots, inside, source)


def neighbours(points: np.ndarray) -> np.ndarray:
    """Distances of the six nearest, in their order, of spots away from the edge."""
    from scipy.spatial import cKDTree

    middle = np.linalg.norm(points - points.mean(0), axis=1) < 30
    return cKDTree(points).query(points[middle], k=7)[0][:, 1:]


@pytest.mark.parametrize("turn", [0.0, 0.1, np.pi / 6, 0.7, np.pi / 2])
@pytest.mark.parametrize(("kind", "ring"), [("hexagonal", [1] * 6), ("square", [1] * 4 + [2**0.5] * 2)])
def test_wider_pitch_is_the_same_lattice_at_twice_the_distance(kind, ring, turn):
    from disturb import widen_pitch

    points, *_ = section(kind, turn=turn)
    wide = widen_pitch(observed(points), 2)
    assert len(wide.spots) == len(points) / 4
    found = wide.measurement.centres
    np.testing.assert_allclose(neighbours(found), 10 * np.array([ring] * len(neighbours(found))), rtol=1e-6)
    np.testing.assert_array_equal(wide.counts[:, 0], [int(spot[1:]) for spot in wide.spots])
    np.testing.assert_array_equal(found, points[wide.counts[:, 0].astype(int)])
    assert wide.source.pitch_um == 200.0
    assert wide.source.spot_um == 55.0


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("kind", ["hexagonal", "square"])
@pytest.mark.parametrize("seed", range(3))
def test_wider_pitch_keeps_its_sublattice_through_jitter_and_missing_spots(kind, factor, seed):
    from disturb import widen_pitch

    points, row, column = section(kind, turn=0.05, jitter=0.05, missing=0.2, seed=seed)
    kept = widen_pitch(observed(points), factor).counts[:, 0].astype(int)
    # On the hexagonal array, one step down goes half a column aside.
    along = column[kept] - (row[kept] // 2 if kind == "hexagonal" else 0)
    assert len(set(row[kept] % factor)) == 1
    assert len(set(along % factor)) == 1
    assert len(kept) == pytest.approx(len(points) / factor**2, rel=0.15)


def test_wider_pitch_of_two_pieces_of_tissue_is_one_lattice():
    from disturb import widen_pitch

    points, row, column = section("hexagonal", turn=0.02)
    apart = (column < 9) | (column > 13)  # farther than any neighbour
    kept = widen_pitch(observed(points[apart]), 2).counts[:, 0].astype(int)
    assert len(set(row[apart][kept] % 2)) == 1
    assert set(column[apart][kept] > 11) == {True, False}
    assert len(set((column - row // 2)[apart][kept] % 2)) == 1


@pytest.mark.parametrize("bend", [0.0, 0.02, 0.06])
def test_wider_pitch_of_a_stretched_and_bent_image_is_found(bend):
    from disturb import widen_pitch

    points, row, column = section("hexagonal", turn=0.3)
    points = points * [1.0, 1.06]
    middle = points.mean(0)
    points = (
        points + bend * np.stack([((points - middle)[:, 1] / 60) ** 3, ((points - middle)[:, 0] / 60) ** 2], 1) * 60
    )
    kept = widen_pitch(observed(points - points.min(0) + 3), 2).counts[:, 0].astype(int)
    assert len(kept) == len(points) / 4
    assert len(set(row[kept] % 2)) == 1
    assert len(set((column - row // 2)[kept] % 2)) == 1


def test_no_lattice_and_no_whole_factor_are_named(obs):
    from disturb import lattice_index, widen_pitch

    with pytest.raises(ValueError, match=r"whole number from 1 on, but is 1\.5"):
        widen_pitch(obs, 1.5)
    with pytest.raises(ValueError, match="lie on a lattice, but are off"):
        lattice_index(np.random.default_rng(0).uniform(0, 100, (300, 2)))
    with pytest.raises(ValueError, match="need neighbours"):
        lattice_index(np.array([[0.0, 0.0], [0.0, 0.0]])[:1])
