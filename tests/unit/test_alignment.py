"""The record of an alignment: what it displaces, what it resamples, and that it survives a store."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from hadmst_sc.alignment.record import Alignment, Field, align_image, align_spots
from hadmst_sc.io.elements import plain
from hadmst_sc.phantom.simulate import simulate

STILL = Alignment(0.0, 0.0, 0.0, 0.0, True, centre_um=(300.0, 300.0))
POINTS = np.random.default_rng(0).uniform(0, 600, (40, 2))


def field(dy: np.ndarray, dx: np.ndarray) -> Field:
    return Field((-200.0, -200.0), 200.0, dy.shape, tuple(dy.ravel().tolist()), tuple(dx.ravel().tolist()))


def test_a_rotation_turns_about_its_centre_from_y_towards_x():
    turned = replace(STILL, rotation_deg=4.0)
    np.testing.assert_allclose(turned.displacement_um(np.array([[300.0, 300.0]])), 0, atol=1e-12)
    below = turned.displacement_um(np.array([[500.0, 300.0]]))[0]
    np.testing.assert_allclose(below, [200 * (np.cos(np.radians(4)) - 1), 200 * np.sin(np.radians(4))])
    lengths = np.hypot(*(POINTS + turned.displacement_um(POINTS) - 300).T)
    np.testing.assert_allclose(lengths, np.hypot(*(POINTS - 300).T))


def test_the_splines_of_a_field_sum_to_one_reproduce_ramps_and_exceed_no_control_point():
    ones = np.ones((6, 6))
    moved = replace(STILL, field=field(7 * ones, -2 * ones)).displacement_um(POINTS * 2 - 300)
    np.testing.assert_allclose(moved, np.tile([7.0, -2.0], (40, 1)), atol=1e-12)
    ramp = np.arange(6)[:, None] * ones
    at = replace(STILL, field=field(ramp, 0 * ones)).displacement_um(POINTS)
    np.testing.assert_allclose(at[:, 0], (POINTS[:, 0] + 200) / 200, atol=1e-12)
    wild = np.random.default_rng(1).uniform(-30, 30, (2, 6, 6))
    assert np.abs(replace(STILL, field=field(*wild)).displacement_um(POINTS)).max() <= 30


def test_the_record_survives_a_store_and_json():
    full = replace(STILL, rotation_deg=1.5, field=field(np.eye(5), np.zeros((5, 5))), sigmas=(1.0, 2.0, 3.0, 4.0))
    for one in (full, STILL):
        assert Alignment.from_record(plain(asdict(one))) == one
        assert Alignment.from_record(json.loads(json.dumps(asdict(one)))) == one
    arrays = plain(asdict(full))
    arrays["sigmas"] = np.array(arrays["sigmas"])
    arrays["field"]["dy_um"] = np.array(arrays["field"]["dy_um"])
    assert Alignment.from_record(arrays) == full


@pytest.mark.parametrize("imposed", [{"rotation_deg": 3.0}, {"deformation_um": 15.0}])
def test_resampling_by_the_displacement_undoes_it(imposed):
    draw = {"size_um": 900.0, "n_genes": 4, "augment": False, "misregistration_um": (10.0, -5.0)}
    straight = simulate(7, **{**draw, "misregistration_um": (0.0, 0.0)}).observation
    bent = simulate(7, **draw, **imposed)
    step = 50.0
    y, x = np.mgrid[0:900:step, 0:900:step] + step / 2
    # Splines through the truth: least squares on a fine lattice.
    m = 12
    lattice = Field((-100.0, -100.0), 100.0, (m, m), (0.0,) * m * m, (0.0,) * m * m)
    weights = np.einsum("sy,sx->syx", lattice.weights(y.ravel(), 0), lattice.weights(x.ravel(), 1)).reshape(y.size, -1)
    truth = bent.displacement_um[:, (y.ravel() / 10).astype(int), (x.ravel() / 10).astype(int)]
    dy, dx = (np.linalg.lstsq(weights, one, rcond=None)[0].tolist() for one in truth)
    back = align_image(bent.observation, replace(STILL, field=replace(lattice, dy_um=tuple(dy), dx_um=tuple(dx))))
    inner = (slice(None), slice(60, -60), slice(60, -60))

    def misfit(he: np.ndarray) -> float:
        return float(np.abs(he[inner].astype(float) - straight.he[inner]).mean())

    assert misfit(back.he) < 0.35 * misfit(bent.observation.he)


def test_the_affine_is_the_displacement_without_the_field():
    turned = replace(STILL, dy_um=12.0, dx_um=-7.0, rotation_deg=2.0)
    there = np.c_[POINTS, np.ones(40)] @ turned.affine.T
    np.testing.assert_allclose(there[:, :2], POINTS + turned.displacement_um(POINTS))


def test_spots_moved_onto_the_image_lie_where_it_shows_what_they_saw():
    obs = simulate(3, size_um=800.0, n_genes=2).observation
    found = replace(STILL, dy_um=25.0, dx_um=-10.0, applied=True)
    moved = align_spots(obs, found)
    assert moved.he is obs.he
    kept = [obs.spots.index(spot) for spot in moved.spots]
    wanted = obs.measurement.centres[kept] + np.array([25.0, -10.0]) / obs.grid.bin_um
    np.testing.assert_allclose(moved.measurement.centres, wanted)
    assert (moved.inside | ~(moved.measurement.coverage > 0)).all()
    assert align_spots(obs, STILL) is obs


def test_spots_moved_across_the_border_keep_their_rates():
    obs = simulate(3, size_um=800.0, n_genes=2).observation
    first = obs.measurement.centres[:, 1].min() * obs.grid.bin_um
    found = replace(STILL, dx_um=10.0 - first, applied=True)  # 10 µm from the border, with a radius of 27.5 µm
    moved = align_spots(obs, found)
    kept = np.array([obs.spots.index(spot) for spot in moved.spots])
    share = moved.measurement.area / obs.measurement.area[kept]
    assert 0.5 < share.min() < 0.9 and np.isclose(share, 1, atol=1e-4).sum() > 0.8 * len(share)
    rates = [one.counts / one.measurement.area[:, None] for one in (obs.subset_spots(kept), moved)]
    np.testing.assert_allclose(rates[1], rates[0], rtol=1e-3)
    whole = np.isclose(share, 1, atol=1e-4)
    np.testing.assert_array_equal(moved.counts[whole], obs.counts[kept][whole])
