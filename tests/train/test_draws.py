"""The score asks for the right law of draws, the discriminator sees genes and scales, training with both resumes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from matplotlib.image import imread
from safetensors.torch import load_file

from hadmst_sc.models.adversary import ChannelDiscriminator, fooling_loss, judge_loss
from hadmst_sc.train.data import draw_batch
from hadmst_sc.train.loop import build_model, train
from hadmst_sc.train.losses import N_BANDS, TrainingStep, bands, energy_score
from hadmst_sc.train.pictures import COLUMNS, GAP

EVERYWHERE = torch.ones(32, 32)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_bands_are_the_map_taken_apart():
    maps = normal(3, 32, 32)
    parts = bands(maps, EVERYWHERE)
    whole = sum(torch.nn.functional.interpolate(p[None], size=(32, 32), mode="nearest")[0] for p, _ in parts)
    assert len(parts) == N_BANDS and torch.allclose(whole, maps, atol=1e-5)


def test_bands_do_not_look_outside_the_tissue():
    inside = EVERYWHERE.clone()
    inside[:, 20:] = 0
    maps, other = normal(1, 32, 32), normal(1, 32, 32)
    other[..., :20] = maps[..., :20]
    for (a, weight), (b, _) in zip(bands(maps, inside), bands(other, inside), strict=True):
        assert torch.equal(a * (weight > 0), b * (weight > 0))


def score_of(spread: float, shared: float = 0.8) -> float:
    """Mean score of draws of some spread and correlation over genes; the truth's are 1 and 0.8."""
    total = 0.0
    for seed in range(40):
        own, common = normal(3, 4, 32, 32, seed=seed), normal(3, 1, 32, 32, seed=1000 + seed)

        def law(i: int, share: float, own=own, common=common) -> torch.Tensor:
            return share**0.5 * common[i] + (1 - share) ** 0.5 * own[i]

        draws = spread * torch.stack([law(1, shared), law(2, shared)])
        total += energy_score(draws, law(0, 0.8), EVERYWHERE).item() / 40
    return total


def test_score_is_least_at_the_right_spread_and_coexpression():
    right = score_of(1.0)
    assert right < min(score_of(0.0), score_of(0.6), score_of(1.5))
    assert right < score_of(1.0, shared=0.0)
    assert score_of(0.0) == pytest.approx(1, abs=1e-3)


def test_discriminator_learns_texture_and_coexpression():
    def learned(true, false):
        """How well it tells new maps apart after a few steps."""
        torch.manual_seed(0)
        judge, token, base = ChannelDiscriminator(3), torch.zeros(4, 3), torch.zeros(4, 32, 32)
        optimizer = torch.optim.Adam(judge.parameters(), 3e-3, betas=(0.0, 0.99))
        for step in range(120):
            optimizer.zero_grad()
            loss = judge_loss(*(judge(law(step), base, token, EVERYWHERE) for law in (true, false)))
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            return judge_loss(*(judge(law(9999), base, token, EVERYWHERE) for law in (true, false))).item()

    def rough(step):
        return normal(4, 32, 32, seed=step)

    def smooth(step):
        return torch.nn.functional.avg_pool2d(normal(4, 34, 34, seed=step), 3, 1) * 3

    def together(step):
        return normal(1, 32, 32, seed=step).expand(4, -1, -1)

    assert learned(rough, smooth) < 1.2
    assert learned(together, rough) < 1.6  # each gene alone looks the same


def test_discriminator_knows_the_gene():
    torch.manual_seed(0)
    judge, maps, base = ChannelDiscriminator(3), normal(4, 32, 32), torch.zeros(4, 32, 32)
    a, b = (fooling_loss(judge(maps, base, torch.full((4, 3), t), EVERYWHERE)) for t in (0.0, 1.0))
    assert a.item() != b.item()


@pytest.fixture
def with_draws(with_bank):
    return replace(with_bank, draw=1.0, adversary=0.1)


def test_training_with_draws_resumes_bit_for_bit(with_draws, real, tmp_path):
    train(with_draws, sections=real, output=tmp_path / "whole")
    for stop in (2, 8):
        train(with_draws, sections=real, output=tmp_path / "pieces", until=stop)
    whole, pieces = (load_file(tmp_path / run / "checkpoint.safetensors") for run in ("whole", "pieces"))
    assert any(name.startswith("judge_optimizer") for name in whole)
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)


def test_draws_learn_to_score_better_on_one_batch(with_draws, bank):
    step = next(s for s in range(20) if len(draw_batch(bank, with_draws, s, 0).drawn))
    batch = draw_batch(bank, with_draws, step, 0)
    module = TrainingStep(build_model(with_draws))
    optimizer = torch.optim.AdamW(module.parameters(), 3e-3)
    none = torch.zeros(0), torch.zeros(0, 1, 32, 32)
    scores = []
    for i in range(40):
        optimizer.zero_grad()
        noise = normal(2, len(batch.drawn), 32, 32, seed=i)
        losses, drawn = module(batch, len(batch.section), *none, noise)
        losses.draw.backward()
        optimizer.step()
        scores.append(losses.draw.item())
    assert sum(scores[-5:]) < 0.9 * sum(scores[:5])
    assert (drawn.draws[0] - drawn.draws[1]).std() > 0.01


def test_a_picture_of_every_column_is_beside_the_checkpoint(with_draws, real, tmp_path):
    train(with_draws, sections=real, output=tmp_path, until=2)
    picture = imread(tmp_path / "pictures.png")
    side = with_draws.crop + GAP
    assert picture.shape[:2] == (with_draws.genes * side, len(COLUMNS) * side)
    truth = picture[: with_draws.crop, -side:-GAP, :3]
    assert truth.std() > 0


def test_items_that_are_drawn_belong_to_one_phantom(with_bank, bank):
    for step in range(10):
        batch = draw_batch(bank, with_bank, step, 0)
        assert len(batch.drawn) in (0, with_bank.genes)
        assert len(set(batch.section[batch.drawn].tolist())) <= 1
        assert not len(batch.drawn) or batch.drawn.min() >= batch.n_real
