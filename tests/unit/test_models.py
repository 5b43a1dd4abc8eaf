"""The network: closed form plus zero at the start, local, and honest about its reach."""

from __future__ import annotations

import pytest
import torch

from hadmst_sc.distillation.genes import PRIORS
from hadmst_sc.models import HadmstModel, ModelSpec
from hadmst_sc.models.diffusion import N_CHANNELS, gene_channels
from hadmst_sc.models.local import in_windows, plus_repeated
from hadmst_sc.section.features import N_BASE

SPEC = ModelSpec()


def reach_of(network: torch.nn.Module, in_channels: int, embed: int, size: int = 128) -> int:
    """Reach in bins, measured by perturbation: largest distance at which a change of one input bin has an effect."""
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(1, in_channels, size, size, generator=generator, dtype=torch.float64)
        embedding = torch.randn(1, embed, generator=generator, dtype=torch.float64)
        furthest = 0
        for centre in range(size // 2, size // 2 + 4):  # the phase within a 4-bin cell matters
            changed = inputs.clone()
            changed[..., centre, centre] += 1.0
            moved = (network(changed, embedding) - network(inputs, embedding)).abs()[0, 0] > 0
            felt = moved.nonzero()
            furthest = max(furthest, int((felt - centre).abs().max()) if len(felt) else 0)
    return furthest


def randomised(seed: int = 0) -> HadmstModel:
    """A model whose zero-initialised layers speak too."""
    torch.manual_seed(seed)
    model = HadmstModel(SPEC)
    for parameter in model.parameters():
        if parameter.abs().max() == 0:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def inputs(n: int = 16, genes: int = 2):
    generator = torch.Generator().manual_seed(0)
    priors = torch.randn(genes, len(PRIORS), n, n, generator=generator).mul(0.3).exp()
    spots = torch.rand(genes, n, n, generator=generator)
    context = torch.randn(1, SPEC.context, n, n, generator=generator)
    return priors, gene_channels(priors, spots, (spots[0] > 0.5).float()), context, torch.zeros(genes, SPEC.token)


@torch.no_grad()
def test_untrained_model_is_the_closed_form():
    model = HadmstModel(SPEC)
    priors, channels, context, token = inputs()
    features = model.encode(context)[0].expand(2, -1, -1, -1)
    x, base = torch.zeros(2, 1, 16, 16), priors[:, 2:3]
    for sigma in (3.0, 0.1):
        assert model(x, torch.full((2,), sigma), features, channels, token).abs().max() == 0
    assert torch.equal(model.mean(model.condition(features, channels), token, base), base)


@torch.no_grad()
def test_preconditioning_trusts_a_clean_state():
    model = randomised()
    _priors, channels, context, token = inputs()
    features = model.encode(context)[0].expand(2, -1, -1, -1)
    x = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    out = model(x, torch.full((2,), 1e-4), features, channels, token)
    assert (out - x).abs().max() < 1e-2


def test_measured_reach_is_within_the_declared_halo():
    model = randomised().double()
    reach = reach_of(model.unet, 1 + N_CHANNELS + SPEC.encoder[1], SPEC.embed)
    assert 16 < reach + 2 <= SPEC.halo  # two bins of the encoder come first
    assert SPEC.halo % SPEC.align == 0


def test_reach_grows_when_a_layer_is_added():
    class Wider(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.more = inner, torch.nn.Conv2d(1, 1, 9, padding=4).double()

        def forward(self, x, embedding):
            return self.more(self.inner(x, embedding))

    model = randomised().double()
    channels = 1 + N_CHANNELS + SPEC.encoder[1]
    assert reach_of(Wider(model.unet), channels, SPEC.embed) == reach_of(model.unet, channels, SPEC.embed) + 4


@torch.no_grad()
def test_genes_of_a_batch_do_not_see_each_other():
    model = randomised()
    _priors, channels, context, token = inputs(genes=3)
    features, _ = model.encode(context)
    sigma = torch.full((3,), 0.7)
    x = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    together = model(x, sigma, features.expand(3, -1, -1, -1), channels, token)
    alone = model(x[1:2], sigma[:1], features, channels[1:2], token[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("part", ["student", "encoder"])
def test_a_slide_in_windows_equals_the_slide_in_one(part):
    model, shape = randomised(), (150, 186)
    channels = {"student": N_BASE, "encoder": SPEC.context}[part]
    maps = torch.randn(channels, *shape, generator=torch.Generator().manual_seed(0))
    level = torch.zeros(1, 1)
    network = model.encode if part == "encoder" else lambda stains: model.student(stains, level)
    with torch.inference_mode():
        whole = network(maps[None])
    for one, other in zip(in_windows(network, maps.numpy(), torch.device("cpu"), core=32), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_mean_stays_within_its_bound_of_the_closed_form():
    model = randomised()
    model.unet.head.bias.fill_(1e9)
    priors, channels, context, token = inputs()
    condition = model.condition(model.encode(context)[0].expand(2, -1, -1, -1), channels)
    out = model.mean(condition, token, priors[:, 2:3])
    assert torch.isfinite(out).all()


def test_spec_survives_json():
    import json

    assert ModelSpec.from_dict(json.loads(json.dumps(SPEC.to_dict()))) == SPEC


def test_spec_refuses_unknown_keys():
    with pytest.raises(TypeError, match="attention"):
        ModelSpec.from_dict(SPEC.to_dict() | {"attention": True})


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_repeated_bins_are_added_as_if_they_were_written_out(layout):
    fine, coarse = (torch.randn(2, 3, *shape).contiguous(memory_format=layout) for shape in ((8, 12), (4, 6)))
    found = plus_repeated(fine, coarse)
    assert torch.equal(found, fine + torch.nn.functional.interpolate(coarse, scale_factor=2))
    assert found.is_contiguous(memory_format=layout)


def test_with_and_without_gradients_the_network_says_the_same():
    model = randomised()
    _priors, channels, context, token = inputs()
    given = (torch.full((2,), 1.0), model.encode(context)[0].detach().expand(2, -1, -1, -1), channels, token)
    x = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        without = model(x, *given)
    assert torch.allclose(model(x, *given), without, atol=1e-6)
