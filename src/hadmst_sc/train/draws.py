"""What a draw is judged by: a proper score on several scales, of each gene and of all genes together.

The energy score ``E|X - y| - E|X - X'| / 2`` (Gneiting & Raftery 2007, Eq. 22) is least, in expectation, when draws
follow the law of the truth given the input, so it asks for the right spread, not for a sharp mean. It is taken of the
bands of a pyramid, which makes every octave of the power spectrum count, and of the vector of a crop's genes, which
makes their co-expression count.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

N_BANDS = 5  # details of 1, 2, 4 and 8 bins, and the rest of 16


def bands(maps: Tensor, inside: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Details from fine to coarse and what is left, each with the share of tissue in its cells.

    Parameters
    ----------
    maps
        ``(..., g, n, n)``, ``n`` a multiple of 16.
    inside
        ``(n, n)`` 0 or 1.

    Returns
    -------
    ``N_BANDS`` pairs ``(..., g, m, m)`` and ``(m, m)``, ``m`` halving. A detail is a map less its mean in 2 × 2 cells.
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
    """Score of two draws of one crop, over the score of a draw that is zero everywhere; lower is better.

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
    Scalar: mean over bands, half from each gene alone and half from the vector of all genes.
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
