"""Consistency with the measurement, in count space: multiply the bins under a spot by measured / predicted.

``hard`` makes the sums equal the counts. ``soft`` accounts for counting noise: under a Gamma distribution of shape
``k`` around the prediction the posterior mean of the ratio is ``(y + k) / (mu + k)``; then every gene gets its measured
total. Both keep zeros zero and never give negative values.

``k`` is estimated from leave-one-out predictions. The maps corrected here have seen the spots and have a larger ``k``.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hadmst_sc.diffusion.denoiser import Denoiser, Residual
from hadmst_sc.section.arguments import RULES, Consistency
from hadmst_sc.section.measurement import Measurement

SEEN = 8.0  # factor of k for seen spots: best for the closed form on phantoms; for the network within 0.001 PCC of best
HARD_PASSES = 50  # one is exact when no bin touches two spots; shared bins need iterative fitting
HARD_TOLERANCE = 1e-6


class Footprints:
    """The measurement operator as index lists on a device, for maps in units of the gene's mean.

    Parameters
    ----------
    measurement
        The operator ``A``.
    rates
        ``(spots, genes)`` measured rates, in gene means.
    depth
        ``(spots, genes)`` counts per unit of rate: the gene's mean times the spot's area.
    shape
        ``(genes,)`` Gamma shape ``k`` of leave-one-out predictions.
    device
        Device of the index lists.
    """

    def __init__(
        self, measurement: Measurement, rates: np.ndarray, depth: np.ndarray, shape: np.ndarray, device: torch.device
    ) -> None:
        def tensor(values: np.ndarray) -> Tensor:
            return torch.as_tensor(np.asarray(values, np.float32), device=device)

        matrix = measurement.matrix.tocoo()
        self.row = torch.as_tensor(matrix.row, dtype=torch.long, device=device)
        self.col = torch.as_tensor(matrix.col, dtype=torch.long, device=device)
        self.weight = tensor(matrix.data)
        self.area = tensor(measurement.area)
        self.coverage = tensor(measurement.coverage.ravel())
        self.rates, self.depth = tensor(rates.T), tensor(depth.T)  # (genes, spots)
        self.shape = tensor(shape)[:, None]

    def pool(self, maps: Tensor) -> Tensor:
        """Average maps ``(g, bins)`` over the footprints, to ``(g, spots)``."""
        sums = maps.new_zeros(len(maps), len(self.area))
        return sums.index_add_(1, self.row, maps[:, self.col] * self.weight) / self.area

    def paint(self, values: Tensor) -> Tensor:
        """Area-weighted mean ``(g, bins)`` of ``(g, spots)`` over the spots that touch a bin; zero in the gaps."""
        painted = values.new_zeros(len(values), len(self.coverage))
        painted.index_add_(1, self.col, values[:, self.row] * self.weight)
        return painted / torch.where(self.coverage > 0, self.coverage, 1.0)

    def soft(self, maps: Tensor) -> Tensor:
        """Gamma–Poisson correction; partly covered bins change by their covered share."""
        predicted = self.pool(maps) * self.depth
        shape = SEEN * self.shape
        ratio = (self.rates * self.depth + shape) / (predicted + shape)
        return maps * (1 + self.coverage.clamp(max=1) * (self.paint(ratio) - 1))

    def with_totals(self, maps: Tensor) -> Tensor:
        """Multiply each gene by a factor, so that its counts at all spots together are those measured."""
        measured, total = ((of * self.depth).sum(1, keepdim=True) for of in (self.rates, self.pool(maps)))
        return maps * torch.where((measured > 0) & (total > 0), measured / total.clamp(min=1e-30), 1.0)

    def hard(self, maps: Tensor) -> Tensor:
        """Match the counts exactly by iterative proportional fitting; counts with zero prediction are spread evenly."""
        touched = self.coverage > 0
        empty = self.paint(((self.pool(maps) <= 0) & (self.rates > 0)).to(maps.dtype)) > 0
        maps = torch.where(empty, 1.0, maps)
        for _ in range(HARD_PASSES):
            pooled = self.pool(maps)
            ratio = torch.where(self.rates > 0, self.rates / pooled.clamp(min=1e-30), 0.0)
            maps = torch.where(touched, maps * self.paint(ratio), maps)
            if bool(((self.pool(maps) - self.rates).abs() <= HARD_TOLERANCE * self.rates).all()):
                break
        return maps


def consistent(denoise: Denoiser, residual: Residual, footprints: Footprints, rule: Consistency) -> Denoiser:
    """Denoiser with consistent outputs according to ``rule``.

    Raises
    ------
    ValueError
        If ``rule`` is not one of :data:`RULES`.
    """
    if rule not in RULES:
        raise ValueError(f"`consistency` needs one of {RULES}, but is {rule!r}.")
    if rule == "off":
        return denoise

    def project(maps: Tensor) -> Tensor:
        return footprints.hard(maps) if rule == "hard" else footprints.with_totals(footprints.soft(maps))

    def agree(x: Tensor, sigma: float) -> Tensor:
        rates = residual.decode(denoise(x, sigma))
        return residual.encode(project(rates.flatten(1)).view_as(rates))

    return agree
