"""Losses of one batch: the mean on the Poisson deviance, the denoiser on the weighted squared error."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hadmst_sc.expression import Residual, closed_form
from hadmst_sc.models import SIGMA_MEAN, HadmstModel
from hadmst_sc.models.hadmst import LOG_CHANGE, gene_channels
from hadmst_sc.train.data import Batch

RESIDUAL_RANGE = (-6.0, 8.0)  # of the target in model space: one impossible bin must not own the batch


def deviance(log_rate: Tensor, target: Tensor) -> Tensor:
    """Half the Poisson deviance per bin of a rate against a (noise-free) target; zero when they agree."""
    saturated = torch.where(target > 0, target * target.clamp(min=1e-6).log(), 0.0) - target
    return log_rate.exp() - target * log_rate + saturated


def mean_inside(values: Tensor, inside: Tensor) -> Tensor:
    """``(b, n, n)`` to ``(b,)``: average over the tissue."""
    return (values * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)


class TrainingStep(nn.Module):
    """The model with its losses, as one module, so that any strategy of lightning-fabric can wrap it."""

    def __init__(self, model: HadmstModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, n_mean: int, sigma: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of the first ``n_mean`` items as means, and of the rest as denoising problems.

        Parameters
        ----------
        batch
            ``b`` items.
        n_mean
            How many of them train the mean.
        sigma, noise
            ``(b - n_mean,)`` noise levels and ``(b - n_mean, 1, n, n)`` standard normal noise for the others.

        Returns
        -------
        Mean loss: deviance relative to the closed form's (1.0 = no better). Denoising loss (Karras et al. 2022, Eq. 8).
        """
        features = self.model.encode(batch.context)[batch.section]
        channels = gene_channels(batch.priors, batch.spots, batch.coverage)
        base = closed_form(batch.priors)[:, None]
        first, rest = slice(0, n_mean), slice(n_mean, None)

        at_mean = torch.full((n_mean,), SIGMA_MEAN, device=base.device)
        zero = torch.zeros_like(base[first])
        change = self.model.network(zero, at_mean, features[first], channels[first], batch.token[first])
        log_base, target, inside = base[first, 0].log(), batch.target[first], batch.inside[first]
        ours = deviance(log_base + change[:, 0].clamp(-LOG_CHANGE, LOG_CHANGE), target)
        theirs = mean_inside(deviance(log_base, target), inside)
        # The small constant keeps genes that the closed form already solves from dominating.
        mean_loss = (mean_inside(ours, inside) / (theirs + 0.05)).mean()

        clean = Residual(base[rest]).encode(batch.target[rest, None]).clamp(*RESIDUAL_RANGE)
        mask = batch.inside[rest, None]
        noisy = (clean + sigma[:, None, None, None] * noise) * mask
        denoised = self.model(noisy, sigma, features[rest], channels[rest], batch.token[rest], base[rest])
        data = self.model.spec.sigma_data
        weight = (sigma**2 + data**2) / (sigma * data) ** 2
        error = mean_inside(((denoised - clean) ** 2)[:, 0], mask[:, 0])
        return mean_loss, (weight * error).mean()
