"""Some genes of a section on a device, and their maps."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from hadmst_sc.diffusion import Denoiser, Footprints, consistent, keyed_noise
from hadmst_sc.diffusion.denoiser import Residual, first_closed_form
from hadmst_sc.inference.shared import Maps, SharedSection
from hadmst_sc.runtime import one_blas_thread, pick_device


class Chunk:
    """Some genes of a section on a device.

    Parameters
    ----------
    section
        The section.
    genes
        ``(g,)`` index of the genes.
    device
        Where their maps are computed.
    """

    def __init__(self, section: SharedSection, genes: np.ndarray, device: torch.device) -> None:
        self.section, self.genes, self.device = section, genes, device
        self.inside = torch.from_numpy(section.inside).to(device)
        self._counts_per_rate = self.tensor(section.distilled.gene_mean[genes])[:, None, None] * self.inside

    @cached_property
    def priors(self) -> Tensor:
        """Priors that the estimator needs, ``(genes, priors, ny, nx)``."""
        section = self.section
        return self.tensor(section.distilled.priors(self.genes, section.estimator.priors, section.crop))

    @cached_property
    def residual(self) -> Residual:
        """Model space around the first closed form, around which the network was trained."""
        return Residual(first_closed_form(self.priors))

    @cached_property
    def closed_form(self) -> Tensor:
        """Rates of the closed form ``(genes, ny, nx)``: of the second look; with too few spots for it, the first."""
        distilled = self.section.distilled
        if distilled.section.stack is None:
            return self.residual.base
        return self.tensor(distilled.stacked(self.genes, self.section.crop))

    def tensor(self, values: np.ndarray) -> Tensor:
        """An array on the device, float32."""
        found = torch.from_numpy(np.ascontiguousarray(values, np.float32))
        if self.device.type != "cuda":
            return found.to(self.device)
        return found.pin_memory().to(self.device, non_blocking=True)  # copied while the GPU computes

    def counts(self, rate: Tensor) -> Tensor:
        """Convert a rate to counts per bin, zero outside the tissue."""
        return rate * self._counts_per_rate

    def agreed(self, denoise: Denoiser) -> Denoiser:
        """Wrap a denoiser, so that its output agrees with the counts at the spots."""
        return consistent(denoise, self.residual, self._footprints, self.section.settings.consistency)

    def estimate(self, rate: Tensor) -> Tensor:
        """The estimate in model space: the closed form blended with a rate, then made to agree with the counts.

        Where cells are known, the blend is shifted towards them.
        """
        change = (rate / self.closed_form).clamp(min=1e-9)
        return self.consistent(self.supported(self.residual.encode(self.closed_form * change**self.section.share)))

    def supported(self, x: Tensor) -> Tensor:
        """Multiply maps in model space by the support of cells, if these are known."""
        if self.section.support is None:
            return x
        return self.residual.encode(self.residual.decode(x) * self.tensor(self.section.support))

    def consistent(self, x: Tensor) -> Tensor:
        """Make maps in model space agree with the counts at the spots."""
        return self.agreed(lambda x, sigma: x)(x, 0.0)

    def noise(self, number: int) -> Tensor:
        """Noise of one sample ``(genes, ny, nx)`` on the crop; it depends on neither the crop nor the chunk."""
        section = self.section
        names = [section.genes[gene] for gene in self.genes]
        whole = keyed_noise(section.distilled.section.active.shape, names, section.settings.random_state, number)
        return whole[(slice(None), *section.crop)].to(self.device)

    @cached_property
    def _footprints(self) -> Footprints:
        distilled, measurement = self.section.distilled, self.section.measurement
        depth = distilled.gene_mean[self.genes] * measurement.area[:, None]
        rates, shape = distilled.panel.rates(self.genes), distilled.shape[self.genes]
        return Footprints(measurement, rates, depth, shape, self.device)


@one_blas_thread()  # leaves all cores to the network
@torch.inference_mode()
def predict_chunk(section: SharedSection, genes: np.ndarray) -> Maps:
    """Maps of some genes on the cropped grid, counts per bin."""
    device = pick_device(section.settings.device)
    with torch.autocast(device.type, enabled=False):  # overrides the caller's
        maps = section.estimator.maps(Chunk(section, genes, device))
    if section.variance is None:
        return maps
    return maps._replace(std=np.sqrt(section.variance[genes, None, None].astype(np.float32) * maps.mean))
