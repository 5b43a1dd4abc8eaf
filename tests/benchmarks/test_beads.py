"""What the numbers of beads say of maps that know the lattice of the spots, and of maps that do not."""

from __future__ import annotations

import beads
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from hadmst_sc.phantom.simulate import simulate


@pytest.fixture(scope="module", params=[100.0, 200.0], ids=["triangular", "square"])
def obs(request):
    spot = 0.55 * request.param
    return simulate(3, size_um=2400.0, bin_um=20.0, spot_um=spot, pitch_um=request.param, n_genes=1).observation


def smooth(obs, n: int = 6) -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=(n, *obs.inside.shape))
    return 1 + np.array([gaussian_filter(one, 1.5) for one in noise])


def numbers(obs, maps: np.ndarray) -> tuple[float, float]:
    measurement = obs.measurement
    of_maxima = beads.maxima_under_spots(maps, obs.inside, measurement.coverage)
    of_lattice = beads.lattice_power(maps, obs.inside, measurement.centres, measurement.pitch)
    assert of_maxima.shape == of_lattice.shape == (len(maps),)
    return float(of_maxima.mean()), float(np.exp(np.log(of_lattice).mean()))


def test_maps_that_do_not_know_the_spots(obs):
    maxima, lattice = numbers(obs, smooth(obs))
    assert abs(maxima) < 0.08 and 0.3 < lattice < 3.5


def test_a_bead_on_every_spot(obs):
    maxima, lattice = numbers(obs, smooth(obs) + gaussian_filter(obs.measurement.coverage, 1.0))
    assert maxima > 0.2 and lattice > 10


def test_a_constant_map_has_no_maxima(obs):
    found = beads.maxima_under_spots(np.ones((1, *obs.inside.shape)), obs.inside, obs.measurement.coverage)
    assert np.isnan(found).all()
