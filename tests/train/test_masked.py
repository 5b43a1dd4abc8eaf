"""Hidden spots: never among what is given, found again wherever the crop turns them, and scored by a known law."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hadmst_sc.distillation.components import CONTEXT
from hadmst_sc.phantom.simulate import simulate
from hadmst_sc.train.bank import RealSection, StoredSection, make_masked
from hadmst_sc.train.data import draw_batch, turned
from hadmst_sc.train.losses import pooled_deviance


def only_real(config):
    return replace(config, real_share=1.0, drop_he=0.0)


def test_hidden_spots_are_not_among_the_given(bank, with_bank):
    for number in range(bank.n_real):
        section = bank.real(number)
        hidden, coverage = section["owner"] >= 0, section["coverage"].astype(float)
        assert hidden.any()
        assert not (section["spots"][:, hidden & (coverage == 0)] > 0).any()
        # Spots of Visium do not touch: what is hidden lies in the gaps of what is given.
        assert coverage[hidden].max() == 0


def test_what_is_hidden_are_the_counts_of_those_spots(bank, real):
    section, obs = bank.real(0), real["section_10"].obs
    owner = section["owner"]
    centres = np.stack([np.argwhere(owner == k).mean(0) + 0.5 for k in range(len(section["hidden_area"]))])
    spot = np.linalg.norm(obs.measurement.centres[:, None] - centres, axis=2).argmin(0)
    measured = {tuple(row) for row in obs.counts[spot].T.astype(int)}
    assert {tuple(row) for row in section["hidden"].astype(int)} <= measured


def test_pooled_deviance_is_zero_for_the_truth_and_known_for_a_factor(bank, with_bank):
    batch = draw_batch(bank, only_real(with_bank), 0, 0)
    assert batch.n_real == with_bank.sections * with_bank.genes and len(batch.counts) > 1
    flat = torch.zeros_like(batch.weight)
    # Counts as a flat map foretells them: every spot then holds its depth.
    exact = replace(batch, counts=torch.cat([batch.depth[:-1], batch.counts[-1:]]))
    assert pooled_deviance(flat, exact)[0].abs().max() < 1e-3
    doubled, share = pooled_deviance(flat + float(np.log(2)), exact)
    total = share / 0.05
    torch.testing.assert_close(doubled, total * float(1 - np.log(2)), rtol=1e-3, atol=1e-3)


def test_spots_cut_by_the_crop_do_not_count(bank, with_bank):
    batch = draw_batch(bank, replace(only_real(with_bank), crop=64), 1, 0)
    pooled = torch.zeros(len(batch.counts)).index_add(0, batch.owner.flatten(), batch.weight.flatten())[:-1]
    assert (pooled > 0.9 * pooled.max()).all()


def test_items_of_real_sections_come_first_and_train_the_mean_alone(bank, with_bank):
    mixed = replace(with_bank, real_share=0.5)
    seen = {draw_batch(bank, mixed, step, 0).n_real for step in range(12)}
    assert seen == {0, 3, 6}
    for step in range(4):
        batch = draw_batch(bank, mixed, step, 0)
        assert not batch.target[: batch.n_real].any() and batch.target[batch.n_real :].sum((1, 2)).all()


@pytest.mark.parametrize("turn", range(4))
@pytest.mark.parametrize("flip", [False, True])
def test_displacements_turn_with_their_map(turn, flip):
    # The vector field (y, x) of positions themselves: turned, it must still point from the centre outwards.
    yx = np.indices((5, 5)).astype(float) - 2
    moved = np.rot90(yx, turn, (-2, -1))
    moved = turned(moved[..., ::-1] if flip else moved, turn, flip)
    np.testing.assert_array_equal(moved, yx)


def test_cells_serve_as_spots_of_one_bin(tmp_path, tiny, student):
    phantom = simulate(70_001, size_um=800.0, n_genes=6, depth=(2.0, 40.0))
    truth = np.random.default_rng(0).poisson(phantom.rate).astype(np.float32)
    section = RealSection(phantom.observation, truth)
    stored = StoredSection(make_masked(tmp_path / "a.safetensors", 0, section, tiny.bank, student))
    inside = stored["inside"] > 0
    assert len(np.unique(stored["owner"])) - 1 == inside.sum() == stored["hidden"].shape[1]
    totals = {round(float(t)) for t in stored["hidden"].sum(1)}
    assert totals <= {round(float(t)) for t in truth[:, phantom.observation.inside].sum(1)}
    assert stored["context"].shape[0] == CONTEXT.n_channels
