"""The alignment module: silent at first, bounded, exact for whole bins, and it learns a shift that was imposed."""

from __future__ import annotations

import pytest
import torch

from hadmst_sc.distillation.components import CONTEXT, N_LEADING
from hadmst_sc.distillation.genes import PRIORS
from hadmst_sc.models import HadmstModel, ModelSpec
from hadmst_sc.models.alignment import SpatialAlignment, aligned
from hadmst_sc.models.diffusion import gene_channels


def smooth(n: int, seed: int, channels: int = 1) -> torch.Tensor:
    noise = torch.randn(1, channels, n, n, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.avg_pool2d(noise, 9, 1, 4) * 9


def test_it_starts_by_moving_nothing():
    module = SpatialAlignment(8, 3.0)
    assert not module(torch.randn(1, 4, 18, 21), torch.randn(1, 4, 18, 21)).any()


def test_offsets_stay_within_their_bound_for_any_input():
    module = SpatialAlignment(8, 3.0)
    torch.nn.init.normal_(module.layers[-1].weight, std=10.0)
    offsets = module(1e3 * torch.randn(1, 4, 18, 21), torch.randn(1, 4, 18, 21))
    assert offsets.shape == (1, 2, 18, 21) and 2.9 < offsets.abs().max() <= 3.0


@pytest.mark.parametrize(("dy", "dx"), [(0, 0), (2, 0), (0, -3), (1, 2)])
def test_whole_offsets_are_exact(dy, dx):
    maps = torch.randn(2, 3, 16, 20)
    offsets = torch.tensor([dy, dx], dtype=torch.float32)[None, :, None, None].expand(1, 2, 16, 20)
    moved = aligned(maps, offsets)
    inner = (..., slice(4, 12), slice(4, 16))
    torch.testing.assert_close(moved[inner], maps.roll((-dy, -dx), (2, 3))[inner], rtol=1e-4, atol=1e-5)


def test_only_what_the_image_says_is_bent():
    priors = torch.rand(2, len(PRIORS), 16, 16) + 0.5
    spots, coverage = torch.rand(2, 16, 16), torch.ones(16, 16)
    offsets = torch.ones(1, 2, 16, 16)
    straight, bent = gene_channels(priors, spots, coverage), gene_channels(priors, spots, coverage, offsets)
    changed = (straight != bent).flatten(2).any(2).all(0)
    by_name = dict(zip(PRIORS, changed[: len(PRIORS)].tolist(), strict=True))
    assert by_name == {"he": True, "space": False, "joint": False, "spread": False, "texture": True}


def test_without_alignment_the_offsets_are_zero():
    torch.manual_seed(0)
    model = HadmstModel(ModelSpec())
    torch.nn.init.normal_(model.alignment.layers[-1].weight)
    context = torch.randn(1, CONTEXT.n_channels, 16, 16)
    assert model.encode(context)[1].any() and not model.encode(context, align=False)[1].any()


def test_it_learns_an_imposed_shift_from_the_agreement_of_image_and_spots():
    torch.manual_seed(0)
    module = SpatialAlignment(16, 3.0)
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    rng = torch.Generator().manual_seed(1)
    errors = []
    for step in range(60):
        spots = torch.cat([smooth(32, 1000 * step + i, N_LEADING) for i in range(4)])
        wanted = torch.randint(-2, 3, (4, 2), generator=rng)
        # The image shows at p + shift what the spots saw at p.
        image = torch.stack(
            [maps.roll(tuple(shift), (1, 2)) for maps, shift in zip(spots, wanted.tolist(), strict=True)]
        )
        offsets = module(image, spots)[..., 6:-6, 6:-6]
        loss = (offsets - wanted[:, :, None, None]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    assert sum(errors[-10:]) < 0.3 * sum(errors[:10])
