"""The channel-aware adversarial learner: a discriminator between sampled and true maps of the genes of a crop.

Its inputs are those of the sampler (token and closed form of a gene) and a map that is either a sample or the truth. It
scores patches on three scales, each gene alone and each gene against the other genes of the crop. Training only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

N_SCALES = 3
N_MAPS = 2  # the map that is scored, and the closed form


class ChannelDiscriminator(nn.Module):
    """Patch logits of the maps of one crop's genes, conditioned on their tokens; larger means more realistic.

    Parameters
    ----------
    token
        Length of a gene's token.
    hidden
        Number of channels.
    """

    def __init__(self, token: int, hidden: int = 24) -> None:
        super().__init__()
        self.first = nn.ModuleList([spectral_norm(nn.Conv2d(N_MAPS, hidden, 3, padding=1)) for _ in range(N_SCALES)])
        self.second = nn.ModuleList(
            [spectral_norm(nn.Conv2d(hidden, hidden, 4, stride=2, padding=1)) for _ in range(N_SCALES)]
        )
        self.third = nn.ModuleList([spectral_norm(nn.Conv2d(hidden, hidden, 3, padding=1)) for _ in range(N_SCALES)])
        self.modulate = nn.ModuleList([nn.Linear(token, 2 * hidden) for _ in range(N_SCALES)])
        self.alone = nn.ModuleList([spectral_norm(nn.Conv2d(hidden, 1, 1)) for _ in range(N_SCALES)])
        self.across = nn.ModuleList([spectral_norm(nn.Conv2d(hidden, 1, 1)) for _ in range(N_SCALES)])

    def forward(self, maps: Tensor, base: Tensor, token: Tensor, inside: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Logits per scale, ``(g, 1, m, m)``, and the share of tissue in their patches, ``(m, m)``.

        Parameters
        ----------
        maps
            ``(g, n, n)`` residuals in model space, sampled or true, of genes of one crop.
        base
            ``(g, n, n)`` log1p of the closed form.
        token
            ``(g, token)``.
        inside
            ``(n, n)`` 0 or 1.
        """
        x, share = torch.stack([maps * inside, base * inside], 1), inside[None, None]
        out = []
        for scale in range(N_SCALES):
            if scale:
                x, share = functional.avg_pool2d(x, 2), functional.avg_pool2d(share, 2)
            gain, shift = self.modulate[scale](token)[:, :, None, None].chunk(2, 1)
            h = functional.leaky_relu(self.first[scale](x), 0.2)
            h = functional.leaky_relu(self.second[scale](h) * (1 + gain) + shift, 0.2)
            h = functional.leaky_relu(self.third[scale](h), 0.2)
            others = (h.sum(0, keepdim=True) - h) / max(len(h) - 1, 1)
            logits = self.alone[scale](h) + self.across[scale](h * others)
            out.append((logits, functional.avg_pool2d(share, 2)[0, 0]))
        return out


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum() / (weight.sum() * len(values)).clamp(min=1e-6)


def judge_loss(truth: list[tuple[Tensor, Tensor]], drawn: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Hinge loss of the discriminator (Lim & Ye 2017) on logits of the truth and of samples; 2 at chance level."""
    losses = [
        _mean(functional.relu(1 - true), weight) + _mean(functional.relu(1 + false), weight)
        for (true, weight), (false, _) in zip(truth, drawn, strict=True)
    ]
    return torch.stack(losses).mean()


def fooling_loss(drawn: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Adversarial loss of the sampler: minus the mean logit of its samples."""
    return torch.stack([-_mean(logits, weight) for logits, weight in drawn]).mean()
