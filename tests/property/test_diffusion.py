"""Laws of samplers, tiling, noise, consistency and model space, on denoisers whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hadmst_sc.diffusion import Footprints, consistent, keyed_noise, sample, sigma_schedule, tiled, tiles
from hadmst_sc.diffusion.denoiser import Residual
from hadmst_sc.inference.estimators import SIGMA_START
from hadmst_sc.section.measurement import discs, squares


def gaussian(sd: float):
    """The exact denoiser of data that are normal around zero."""
    return lambda x, sigma: x * sd**2 / (sd**2 + sigma**2)


def box_blur(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """A local denoiser of reach 2 that depends on the noise level."""
    kernel = torch.ones(1, 1, 5, 5, dtype=x.dtype) / (25 + sigma)
    return torch.nn.functional.conv2d(x[:, None], kernel, padding=2)[:, 0]


@pytest.mark.parametrize("sd", [0.6, 0.8, 1.0])
def test_four_steps_keep_the_spread_of_a_gaussian_within_6_percent(sd):
    noise = keyed_noise((300, 300), ["g"], 0, 0)
    draw = sample(gaussian(sd), noise, sigma_schedule(4, SIGMA_START), torch.zeros(1), 0.8)
    assert draw.std().item() / sd == pytest.approx(1, abs=0.06)
    assert draw.mean().item() == pytest.approx(0, abs=0.01)


def test_many_steps_converge_to_the_gaussian():
    noise = keyed_noise((300, 300), ["g"], 1, 0)
    draw = sample(gaussian(1.0), noise, sigma_schedule(64, 10.0, 0.01), torch.zeros(1), 1.0)
    assert draw.std().item() == pytest.approx(1, abs=0.01)


@given(st.integers(1, 40), st.floats(0.5, 80))
def test_schedule_decreases_to_zero(n, sigma_max):
    levels = sigma_schedule(n, sigma_max)
    assert len(levels) == n + 1 and levels[-1] == 0 and levels[0].item() == pytest.approx(sigma_max)
    assert (levels[:-1] > levels[1:]).all()


@given(st.integers(4, 40), st.integers(4, 40), st.sampled_from([4, 8, 12]), st.integers(0, 10**6))
def test_tiled_equals_untiled_when_halo_covers_reach(ny, nx, core, seed):
    rng = np.random.default_rng(seed)
    inside = rng.random((ny, nx)) < 0.7
    inside[0, 0] = True
    x = torch.from_numpy(rng.standard_normal((2, ny, nx)))

    def run(size):
        return tiled(lambda window: box_blur, inside, core=size, halo=4, align=4)(x, 0.5)

    assert torch.equal(run(core), run(48))


@given(st.integers(4, 60), st.integers(4, 60), st.sampled_from([4, 8, 24]), st.integers(0, 10**6))
def test_windows_end_where_the_grid_does(ny, nx, core, seed):
    """What lies beyond is not computed: on a section of the usual size that was a third of all there was to do."""
    inside = np.random.default_rng(seed).random((ny, nx)) < 0.1
    inside[-1, -1] = True
    for window in tiles(inside, core=core, halo=8, align=4):
        y0, x0, y1, x1 = window.outer
        assert 0 <= y0 < y1 < ny + 4 and 0 <= x0 < x1 < nx + 4
        assert not any(edge % 4 for edge in window.outer)
        top, left, bottom, right = window.inner
        assert y0 <= top < bottom <= y1 and x0 <= left < right <= x1


def test_a_halo_below_the_reach_is_seen():
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 24, 24)))
    everywhere = np.ones((24, 24), bool)
    whole = tiled(lambda w: box_blur, everywhere, core=24, halo=4, align=4)(x, 0.5)
    cut = tiled(lambda w: box_blur, everywhere, core=8, halo=0, align=4)(x, 0.5)
    assert (whole - cut).abs().max() > 0.01


def test_state_outside_the_tissue_is_zero_before_and_after():
    inside = np.zeros((8, 8), bool)
    inside[2:5, 3:6] = True
    seen = []

    def local(window):
        return lambda x, sigma: seen.append(x.clone()) or torch.ones_like(x)

    out = tiled(local, inside, core=8, halo=4, align=4)(torch.ones(1, 8, 8), 1.0)
    assert out[0].numpy().sum() == inside.sum()
    assert seen[0].sum() == inside.sum()


def test_noise_belongs_to_seed_draw_gene_and_bin():
    both = keyed_noise((5, 6), ["A", "B"], 7, 0)
    assert torch.equal(keyed_noise((5, 6), ["B"], 7, 0)[0], both[1])
    assert not torch.equal(both[0], both[1])
    assert not torch.equal(keyed_noise((5, 6), ["A"], 7, 1)[0], both[0])
    assert not torch.equal(keyed_noise((5, 6), ["A"], 8, 0)[0], both[0])


def test_noise_leaves_the_callers_random_state_alone():
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    keyed_noise((5, 6), ["A"], 0, 0)
    after = np.random.get_state()[1], torch.get_rng_state()  # noqa: NPY002
    assert (after[0] == before[0]).all() and torch.equal(after[1], before[1])


@given(st.floats(0.02, 50), st.floats(0, 200))
def test_model_space_is_invertible(base, rate):
    residual = Residual(torch.tensor([base], dtype=torch.float64))
    back = residual.decode(residual.encode(torch.tensor([rate], dtype=torch.float64)))
    assert back.item() == pytest.approx(rate, rel=1e-9, abs=1e-9)
    assert residual.encode(residual.base).item() == 0


def section(seed: int, spots: int = 12, overlap: bool = False):
    rng = np.random.default_rng(seed)
    centres = np.stack(np.meshgrid(np.arange(4), np.arange(3), indexing="ij"), -1).reshape(-1, 2)[:spots] * 6.0 + 4.3
    measurement = squares(centres, 6.7, (28, 24)) if overlap else discs(centres, 4.1, (28, 24))
    rates = rng.gamma(1.0, 1.0, (len(measurement), 3))
    rates[0] = 0
    depth = np.full_like(rates, 5.0)
    footprints = Footprints(measurement, rates, depth, np.array([0.5, 5.0, 50.0]), torch.device("cpu"))
    maps = torch.from_numpy(rng.gamma(1.0, 1.0, (3, 28 * 24)).astype(np.float32))
    return measurement, rates, footprints, maps


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_hard_consistency_gives_the_measured_sums(seed, overlap):
    measurement, rates, footprints, maps = section(seed, overlap=overlap)
    sums = measurement.matrix @ footprints.hard(maps).double().numpy().T
    assert np.abs(sums - rates * measurement.area[:, None]).max() <= 1e-4 * (rates * measurement.area[:, None]).max()


def test_hard_consistency_spreads_a_count_over_an_empty_prediction():
    measurement, rates, footprints, maps = section(0)
    sums = measurement.matrix @ footprints.hard(torch.zeros_like(maps)).double().numpy().T
    np.testing.assert_allclose(sums, rates * measurement.area[:, None], rtol=1e-4)


def test_soft_consistency_lies_between_prediction_and_measurement_and_closer_for_a_small_shape():
    _measurement, rates, footprints, _ = section(1)
    flat = torch.ones(3, 28 * 24)
    pooled = footprints.pool(footprints.soft(flat)).numpy()
    target = rates.T
    between = (pooled - 1) * (target - pooled) >= -1e-6
    assert between.all()
    moved = np.abs(pooled - 1) / np.abs(target - 1)
    assert (moved[0] > moved[1]).all() and (moved[1] > moved[2]).all()


@pytest.mark.parametrize("factor", [1e-3, 0.3, 1.0, 40.0])
def test_with_soft_consistency_every_gene_keeps_its_total(factor):
    measurement, rates, footprints, maps = section(1)
    residual = Residual(torch.ones_like(maps))
    agreed = consistent(lambda x, sigma: x, residual, footprints, "soft")(residual.encode(factor * maps), 0.0)
    sums = measurement.matrix @ residual.decode(agreed).double().numpy().T
    np.testing.assert_allclose(sums.sum(0), (rates * measurement.area[:, None]).sum(0), rtol=1e-4)


def test_consistency_leaves_unmeasured_bins_alone():
    measurement, _, footprints, maps = section(2)
    gaps = torch.from_numpy(measurement.coverage.ravel() == 0)
    for project in (footprints.soft, footprints.hard):
        assert torch.equal(project(maps)[:, gaps], maps[:, gaps])


def test_consistency_is_non_negative_and_finite():
    _, _, footprints, maps = section(3)
    for project in (footprints.soft, footprints.hard):
        for values in (maps, torch.zeros_like(maps), maps * 1e6, maps * 1e-6):
            out = project(values)
            assert torch.isfinite(out).all() and (out >= 0).all()


def test_unknown_rule_is_refused_by_name():
    residual = Residual(torch.ones(1))
    with pytest.raises(ValueError, match=r"`consistency` needs one of .*'medium'"):
        consistent(gaussian(1.0), residual, None, "medium")
