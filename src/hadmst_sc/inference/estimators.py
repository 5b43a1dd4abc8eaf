"""Three ways to predict maps of genes: closed form, network, or metagenes in place of the network."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hadmst_sc.diffusion import Denoiser, sample, sigma_schedule, tiled, to_multiples
from hadmst_sc.diffusion.denoiser import Residual
from hadmst_sc.distillation.genes import PRIORS
from hadmst_sc.inference.chunk import Chunk
from hadmst_sc.inference.shared import Maps
from hadmst_sc.models import HadmstModel
from hadmst_sc.models.diffusion import gene_channels
from hadmst_sc.section.grid import Window

# Sampling in several steps starts at this noise level, around the estimate. Four steps then give the spread of a
# Gaussian within 6 % (tests/property/test_diffusion.py); from 80, as in Karras et al. 2022, many more would be needed.
SIGMA_START = 3.0
# Devices on which the network computes in bfloat16: convolutions are several times faster on a GPU, and slower on many
# CPUs.
HALF_PRECISION_ON = ("cuda",)
# For a gene that the network does not see: share of the way (in the logarithm) to its metagenes, and of the change that
# the network made to similar genes. Tuned at held-out spots of mouse brain and olfactory bulb; phantoms need less.
TO_METAGENES, OF_OTHERS = 0.5, 0.5

Evaluation = Callable[[Tensor, float, Tensor, Tensor, Tensor], Tensor]
"""Function of ``(x, sigma, condition, token, base)`` of some genes in a window; returns maps in model space."""


class Estimator(ABC):
    """Predicts the maps of some genes.

    Attributes
    ----------
    priors
        Names of the priors that it needs, in the order of ``PRIORS``.
    max_genes
        Genes at a time: as many as share the reading of large arrays with profit.
    """

    priors: ClassVar[tuple[str, ...]] = PRIORS[:4]
    max_genes: ClassVar[int] = 16

    @abstractmethod
    def maps(self, chunk: Chunk) -> Maps:
        """Mean and, if wanted, samples, counts per bin; the standard deviation follows from the mean."""

    def on_cpu(self) -> Estimator:
        """Copy on the CPU, to send to a worker; it picks its own device."""
        return self


def estimator_of(network: HadmstModel | None, context: np.ndarray) -> Estimator:
    """The network with its features of a section's context ``(context, ny, nx)``; without one, the closed form."""
    return ClosedForm() if network is None else Network(network, *network.read(context))


class ClosedForm(Estimator):
    """The closed form alone."""

    def maps(self, chunk: Chunk) -> Maps:
        """The closed form, consistent with the counts."""
        estimate = chunk.consistent(chunk.supported(chunk.residual.encode(chunk.closed_form)))
        return Maps(chunk.counts(chunk.residual.decode(estimate)).cpu().numpy())


@dataclass(frozen=True, eq=False)
class Network(Estimator):
    """The conditional diffusion model, gene by gene.

    Parameters
    ----------
    model
        The model.
    features, offsets
        ``(1, features, ny, nx)`` and ``(1, 2, ny, nx)`` from :meth:`~hadmst_sc.models.HadmstModel.read`.
    """

    priors = PRIORS
    max_genes = 4  # activations of a chunk stay below a gigabyte

    model: HadmstModel
    features: Tensor
    offsets: Tensor

    def on_cpu(self) -> Estimator:
        """Copy with the model on the CPU."""
        return replace(self, model=copy.deepcopy(self.model).cpu())

    def maps(self, chunk: Chunk) -> Maps:
        """The estimate and, if wanted, samples."""
        residual, model, settings = chunk.residual, self.model.to(chunk.device), chunk.section.settings
        over_tissue = self._windows(chunk, model)
        nothing = torch.zeros_like(residual.base)

        def mean(x: Tensor, sigma: float, condition: Tensor, token: Tensor, base: Tensor) -> Tensor:
            return Residual(base).encode(model.mean(condition, token, base))

        def draw(x: Tensor, sigma: float, condition: Tensor, token: Tensor, base: Tensor) -> Tensor:
            return model.draw(x, condition, token)

        def denoise(x: Tensor, sigma: float, condition: Tensor, token: Tensor, base: Tensor) -> Tensor:
            level = torch.full((len(x),), float(sigma), dtype=x.dtype, device=x.device)
            return model.denoise(x, level, condition, token)

        estimate = chunk.estimate(residual.decode(over_tissue(mean)(nothing, 0.0)))
        rate = residual.decode(estimate)
        expected = chunk.counts(rate)
        if not settings.n_samples:
            return Maps(expected.cpu().numpy())
        one_step = settings.n_steps == 1
        drawn = over_tissue(draw if one_step else denoise)
        sampler = chunk.agreed(lambda x, sigma: chunk.supported(drawn(x, sigma)))
        sigmas, draws = sigma_schedule(settings.n_steps, SIGMA_START), []
        for number in range(settings.n_samples):
            noise = chunk.noise(number)
            if one_step:
                x = sampler(noise, 0.0)
            else:
                x = sample(sampler, noise, sigmas, estimate, model.spec.sigma_data)
            draws.append(chunk.counts(residual.decode(x)).cpu().numpy())
        return Maps(expected.cpu().numpy(), draws=np.stack(draws))

    def _windows(self, chunk: Chunk, model: HadmstModel) -> Callable[[Evaluation], Denoiser]:
        """Return a function that evaluates the network window by window over the tissue.

        The condition is computed once for the chunk; all maps are padded once, as far as windows extend beyond them.
        """
        section = chunk.section
        distilled, spec = section.distilled, model.spec
        spots = chunk.tensor(distilled.spot_maps(chunk.genes)[(slice(None), *section.crop)])
        coverage = chunk.tensor(distilled.measurement.coverage[section.crop].clip(0, 1))
        channels = gene_channels(chunk.priors, spots, coverage, self.offsets.to(chunk.device))
        token, base = chunk.tensor(distilled.token[chunk.genes]), chunk.residual.base[:, None]
        pad = to_multiples(section.inside.shape, spec.align)
        half = chunk.device.type in HALF_PRECISION_ON
        autocast = partial(torch.autocast, chunk.device.type, torch.bfloat16, enabled=half)
        with autocast():
            features = functional.pad(self.features.to(chunk.device), pad).expand(len(base), -1, -1, -1)
            condition = model.condition(features, functional.pad(channels, pad))
        base = functional.pad(base, pad, value=1.0)

        def over_tissue(evaluate: Evaluation) -> Denoiser:
            def local(window: Window) -> Denoiser:
                cut = (..., *window.read)

                def denoise(x: Tensor, sigma: float) -> Tensor:
                    with autocast():
                        return evaluate(x[:, None], sigma, condition[cut], token, base[cut])[:, 0].float()

                return denoise

            return tiled(local, section.inside, core=section.limits.window, halo=spec.halo, align=spec.align)

        return over_tissue


@dataclass(frozen=True, eq=False)
class ByMetagenes(Estimator):
    """Predicts from the network's maps of metagenes and of a few landmark genes, in place of the network.

    Parameters
    ----------
    of_metagenes
        ``(K, ny, nx)`` expected counts per bin of the metagenes.
    shares
        ``(genes, K)``: for each metagene, the part of its counts that belongs to each gene.
    change
        ``(L, ny, nx)`` logarithm of network over first closed form, for the landmark genes.
    likeness
        ``(genes, L)`` weights of the landmark genes for each gene, rows sum to one.
    """

    of_metagenes: np.ndarray
    shares: np.ndarray
    change: np.ndarray
    likeness: np.ndarray

    def maps(self, chunk: Chunk) -> Maps:
        """The first closed form, moved towards the gene's metagenes and by the network's change of similar genes."""
        base, likeness = chunk.residual.base, chunk.tensor(self.likeness[chunk.genes])
        mean = chunk.section.distilled.gene_mean[chunk.genes]
        shares = chunk.tensor(self.shares[chunk.genes] / mean[:, None])
        of_metagenes = torch.einsum("gk,kyx->gyx", shares, chunk.tensor(self.of_metagenes)).clamp(min=1e-9)
        change = torch.einsum("gl,lyx->gyx", likeness, chunk.tensor(self.change))
        moved = base * (TO_METAGENES * (of_metagenes / base).log() + OF_OTHERS * change).exp()
        rate = chunk.residual.decode(chunk.estimate(moved))
        return Maps(chunk.counts(rate).cpu().numpy())
