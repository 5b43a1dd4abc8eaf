"""Consistency with the measurement, in count space: multiply what lies under a spot by measured / predicted.

``hard`` makes the sums equal the counts. ``soft`` knows that counts are noisy: under a Gamma law of shape ``k`` around
the prediction the posterior mean of the ratio is ``(y + k) / (mu + k)``. Both keep zeros zero and never go negative.

``k`` is known of predictions that have not seen the spot. Those that are corrected here have, so their ``k`` is larger.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hadmst_sc.diffusion.denoiser import Denoiser, Residual
from hadmst_sc.section.arguments import RULES, Consistency
from hadmst_sc.section.measurement import Measurement

SEEN = 8.0  # times the k of unseen spots: on phantoms best for the closed form, within 0.001 PCC of it for the network
HARD_PASSES = 50  # one is exact when no bin touches two spots; shared bins need iterative fitting
HARD_TOLERANCE = 1e-6


class Footprints:
    """The measurement operator as index lists on a device, for maps in units of the gene's mean.

    Parameters
    ----------
    measurement
        The operator ``A``.
    rates
        ``(spots, genes)`` measured, in gene means.
    depth
        ``(spots, genes)`` counts per unit of rate: the gene's mean times the spot's area.
    shape
        ``(genes,)`` Gamma shape ``k`` around predictions that have not seen the spots.
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
        """``(g, bins)`` to footprint means ``(g, spots)``."""
        sums = maps.new_zeros(len(maps), len(self.area))
        return sums.index_add_(1, self.row, maps[:, self.col] * self.weight) / self.area

    def paint(self, values: Tensor) -> Tensor:
        """``(g, spots)`` to ``(g, bins)``: the area-weighted mean over the spots that touch a bin, zero in the gaps."""
        painted = values.new_zeros(len(values), len(self.coverage))
        painted.index_add_(1, self.col, values[:, self.row] * self.weight)
        return painted / torch.where(self.coverage > 0, self.coverage, 1.0)

    def soft(self, maps: Tensor) -> Tensor:
        """Gamma–Poisson: partly covered bins move by their covered share."""
        predicted = self.pool(maps) * self.depth
        shape = SEEN * self.shape
        ratio = (self.rates * self.depth + shape) / (predicted + shape)
        return maps * (1 + self.coverage.clamp(max=1) * (self.paint(ratio) - 1))

    def hard(self, maps: Tensor) -> Tensor:
        """Exact sums, by iterative proportional fitting; a zero prediction under a count spreads evenly."""
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
    """A denoiser whose every output agrees with the measurement, softly, exactly or not at all.

    Raises
    ------
    ValueError
        If ``rule`` is not one of :data:`RULES`.
    """
    if rule not in RULES:
        raise ValueError(f"`consistency` needs one of {RULES}, but is {rule!r}.")
    if rule == "off":
        return denoise
    project = footprints.soft if rule == "soft" else footprints.hard

    def agree(x: Tensor, sigma: float) -> Tensor:
        rates = residual.decode(denoise(x, sigma))
        return residual.encode(project(rates.flatten(1)).view_as(rates))

    return agree
