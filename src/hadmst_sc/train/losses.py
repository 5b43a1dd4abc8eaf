"""Losses of one batch: Poisson deviance of the mean, squared error of denoiser and offsets, energy score of samples."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from hadmst_sc.diffusion.denoiser import Residual, first_closed_form
from hadmst_sc.models import HadmstModel
from hadmst_sc.models.diffusion import gene_channels
from hadmst_sc.train.data import Batch

RESIDUAL_RANGE = (-6.0, 8.0)  # bounds of the target in model space, so that no single bin dominates the batch


def deviance(log_rate: Tensor, target: Tensor) -> Tensor:
    """Half the Poisson deviance per bin of a rate against a (noise-free) target; zero when they agree."""
    saturated = torch.where(target > 0, target * target.clamp(min=1e-6).log(), 0.0) - target
    return log_rate.exp() - target * log_rate + saturated


def mean_inside(values: Tensor, inside: Tensor) -> Tensor:
    """Average ``(b, n, n)`` over the tissue, to ``(b,)``."""
    return (values * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)


def pooled_deviance(log_rate: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Deviance at held-out spots, and a twentieth of their counts as a scale; ``(r,)`` each, per real item.

    Parameters
    ----------
    log_rate
        ``(r, n, n)`` log rates of the real items, in gene means.
    batch
        The batch with the held-out spots and their counts.
    """
    sums = log_rate.new_zeros(len(batch.counts))
    sums = sums.index_add(0, batch.owner.flatten(), (log_rate.exp() * batch.weight).flatten())
    area = log_rate.new_zeros(len(batch.counts)).index_add(0, batch.owner.flatten(), batch.weight.flatten())
    expected = (sums / area.clamp(min=1e-6) * batch.depth)[:-1].clamp(min=1e-6)
    errors, counts, item = deviance(expected.log(), batch.counts[:-1]), batch.counts[:-1], batch.item[:-1]
    zero = log_rate.new_zeros(len(log_rate))
    return zero.index_add(0, item, errors), zero.index_add(0, item, 0.05 * counts)


class Drawn(NamedTuple):
    """Samples of one phantom's genes with the discriminator's other inputs; model space, ``g`` may be zero."""

    draws: Tensor  # (2, g, n, n)
    truth: Tensor  # (g, n, n)
    base: Tensor  # (g, n, n) log1p of the closed form
    token: Tensor  # (g, t)
    inside: Tensor  # (n, n)

    @property
    def beside(self) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs of the discriminator that are the same for sampled and true maps."""
        return self.base, self.token, self.inside


class Inputs(NamedTuple):
    """Inputs of the network for the ``b`` items of a batch, the same for all tasks."""

    features: Tensor  # (b, features, n, n)
    channels: Tensor  # (b, N_CHANNELS, n, n)
    base: Tensor  # (b, 1, n, n) closed form
    offsets: Tensor  # (s, 2, n, n) bins, per section


class Losses(NamedTuple):
    """Losses of one batch, scalars."""

    mean: Tensor  # deviance relative to the closed form; 1 is no better
    denoising: Tensor  # Karras et al. 2022, Eq. 8
    alignment: Tensor  # squared error of the offsets where the truth is known, bins²
    draw: Tensor  # energy score relative to that of zero residuals


class TrainingStep(nn.Module):
    """The model with its losses as one module, so that any lightning-fabric strategy can wrap it."""

    def __init__(self, model: HadmstModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, batch: Batch, n_mean: int, sigma: Tensor, noise: Tensor, draw_noise: Tensor
    ) -> tuple[Losses, Drawn]:
        """Compute the losses: mean for the first ``n_mean`` items, denoising for the rest, samples for one phantom.

        Parameters
        ----------
        batch
            ``b`` items, real ones first.
        n_mean
            Number of items that train the mean; at least the real ones.
        sigma, noise
            ``(b - n_mean,)`` noise levels and ``(b - n_mean, 1, n, n)`` standard normal noise for the other items.
        draw_noise
            ``(2, g, n, n)`` standard normal noise for ``batch.drawn``; of length zero along the second axis to skip
            samples.
        """
        inputs = self.inputs(batch)
        features, channels, base, offsets = inputs
        first, rest = slice(0, n_mean), slice(n_mean, None)

        condition = self.model.condition(features[first], channels[first])
        log_base = base[first, 0].log()
        log_rate = log_base + self.model.log_change(condition, batch.token[first])[:, 0]
        mean_loss = self._mean_loss(log_rate, log_base, batch)

        clean = Residual(base[rest]).encode(batch.target[rest, None]).clamp(*RESIDUAL_RANGE)
        mask = batch.inside[rest, None]
        noisy = (clean + sigma[:, None, None, None] * noise) * mask
        denoised = self.model(noisy, sigma, features[rest], channels[rest], batch.token[rest])
        data = self.model.spec.sigma_data
        weight = (sigma**2 + data**2) / (sigma * data) ** 2
        error = mean_inside(((denoised - clean) ** 2)[:, 0], mask[:, 0])
        denoising_loss = (weight * error).mean() if len(error) else error.sum()

        wrong = (offsets - batch.displacement).square().sum(1).mean((1, 2))
        alignment_loss = (wrong * batch.known).sum() / batch.known.sum().clamp(min=1)

        drawn = self.draw(batch, inputs, draw_noise)
        score = mean_loss.new_zeros(())
        if len(drawn.truth):
            score = energy_score(drawn.draws, drawn.truth, drawn.inside)
        return Losses(mean_loss, denoising_loss, alignment_loss, score), drawn

    def inputs(self, batch: Batch) -> Inputs:
        """Encode a batch."""
        shared, offsets = self.model.encode(batch.context)
        channels = gene_channels(batch.priors, batch.spots, batch.coverage, offsets[batch.section])
        return Inputs(shared[batch.section], channels, first_closed_form(batch.priors)[:, None], offsets)

    def draw(self, batch: Batch, inputs: Inputs, noise: Tensor) -> Drawn:
        """Draw two one-step samples of ``batch.drawn``; ``noise`` is the ``draw_noise`` of :meth:`forward`."""
        chosen = batch.drawn if noise.shape[1] else batch.drawn[:0]
        n = len(chosen)
        base = inputs.base[chosen, 0]
        token, inside = batch.token[chosen], batch.inside[chosen[:1]].sum(0)
        residual = Residual(base)
        truth = residual.encode(batch.target[chosen]).clamp(*RESIDUAL_RANGE)
        if not n:
            return Drawn(truth.new_zeros(2, *truth.shape), truth, base.log1p(), token, inside)
        condition = self.model.condition(inputs.features[chosen], inputs.channels[chosen])
        both = (torch.cat([condition, condition]), torch.cat([token, token]))
        out = self.model.draw((noise * inside).flatten(0, 1)[:, None], *both)
        draws = residual.encode(residual.decode(out.view(2, n, *base.shape[1:])))  # no rate below zero
        return Drawn(draws, truth, base.log1p(), token, inside)

    def _mean_loss(self, log_rate: Tensor, log_base: Tensor, batch: Batch) -> Tensor:
        """Deviance relative to the closed form; a small constant keeps genes that it solves from dominating."""
        r, n = batch.n_real, len(log_rate)
        target, inside = batch.target[r:n], batch.inside[r:n]
        ours = mean_inside(deviance(log_rate[r:], target), inside)
        theirs = mean_inside(deviance(log_base[r:], target), inside)
        ratio = ours / (theirs + 0.05)
        if r:
            hidden, share = pooled_deviance(log_rate[:r], batch)
            closed, _ = pooled_deviance(log_base[:r], batch)
            has_any = closed > 0  # a crop may contain no held-out spot
            ratio = torch.cat([(hidden / (closed + share).clamp(min=1e-6))[has_any], ratio])
        return ratio.mean()


N_BANDS = 5  # details at 1, 2, 4 and 8 bins, and the residue at 16


def bands(maps: Tensor, inside: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Split maps into details from fine to coarse and a residue, each with the share of tissue in its cells.

    Parameters
    ----------
    maps
        ``(..., g, n, n)``, ``n`` a multiple of 16.
    inside
        ``(n, n)`` 0 or 1.

    Returns
    -------
    ``N_BANDS`` pairs ``(..., g, m, m)`` and ``(m, m)``, ``m`` halving. A detail is a map minus its mean in 2 × 2 cells.
    """
    flat, weight = (maps * inside).reshape(-1, 1, *maps.shape[-2:]), inside[None, None]
    out = []
    for band in range(N_BANDS):
        here = flat / weight.clamp(min=1e-6)
        if band == N_BANDS - 1:
            out.append((here, weight))
            break
        flat, above = functional.avg_pool2d(flat, 2), functional.avg_pool2d(weight, 2)
        coarse = functional.interpolate(flat / above.clamp(min=1e-6), scale_factor=2, mode="nearest")
        out.append((here - coarse, weight))
        weight = above
    return [(values.reshape(*maps.shape[:-2], *values.shape[-2:]), weight[0, 0]) for values, weight in out]


def energy_score(draws: Tensor, truth: Tensor, inside: Tensor) -> Tensor:
    """Energy score of two samples of one crop, relative to the score of a zero map; lower is better.

    Parameters
    ----------
    draws
        ``(2, g, n, n)``.
    truth
        ``(g, n, n)``, same unit.
    inside
        ``(n, n)`` 0 or 1.

    Returns
    -------
    Scalar, the mean over bands; half comes from each gene alone and half from the vector of all genes.
    """
    total = truth.new_zeros(())
    for (drawn, weight), (true, _) in zip(bands(draws, inside), bands(truth, inside), strict=True):
        for length in (torch.abs, _norm):
            errors = length(drawn - true).mean(0) - length(drawn[0] - drawn[1]) / 2
            unit = (length(true) * weight).mean().clamp(min=1e-3)
            total = total + (errors * weight).mean() / unit / (2 * N_BANDS)
    return total


def _norm(vectors: Tensor) -> Tensor:
    """Length over genes, ``(..., g, n, n)`` to ``(..., 1, n, n)``; its gradient at zero is zero."""
    return (vectors.square().sum(-3, keepdim=True) + 1e-8).sqrt()
