"""What the model makes of one crop, as a picture beside every checkpoint: losses do not show what a map looks like."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hadmst_sc.expression import Residual, closed_form
from hadmst_sc.models import SIGMA_MEAN
from hadmst_sc.models.hadmst import gene_channels
from hadmst_sc.train.data import Batch
from hadmst_sc.train.losses import TrainingStep

COLUMNS = ("spots", "closed form", "estimate", "draw", "another draw", "truth")
GAP = 2  # bins between maps
TOP = 0.995  # quantile of a gene's true map that is white


@torch.no_grad()
def maps_of(module: TrainingStep, batch: Batch, draw_noise: Tensor) -> Tensor:
    """Maps of the genes that are drawn, ``(g, len(COLUMNS), n, n)`` in gene means; noise as for the module."""
    chosen, n = batch.drawn, batch.context.shape[-1]
    base = closed_form(batch.priors[chosen])
    residual = Residual(base)
    shared, offsets = module.model.encode(batch.context)
    section = batch.section[chosen]
    channels = gene_channels(batch.priors[chosen], batch.spots[chosen], batch.coverage[chosen], offsets[section])
    level = torch.full((len(chosen),), SIGMA_MEAN, device=base.device)
    state = torch.zeros_like(base)[:, None]
    at_mean = module.model(state, level, shared[section], channels, batch.token[chosen], base[:, None])[:, 0]
    nothing = base.new_zeros(0), base.new_zeros(0, 1, n, n)
    _, drawn = module(batch, len(batch.section), *nothing, draw_noise)
    draws = residual.decode(drawn.draws)
    maps = [batch.spots[chosen], base, residual.decode(at_mean), draws[0], draws[1], batch.target[chosen]]
    return torch.stack(maps, 1) * batch.inside[chosen][:, None]


def save_grid(maps: Tensor, path: Path) -> None:
    """One row per gene, columns as in ``COLUMNS``; a row has one scale, that of its truth."""
    from matplotlib.image import imsave  # here: training machines need not load it

    values = maps.cpu().log1p()
    top = torch.quantile(values[:, -1].flatten(1), TOP, dim=1).clamp(min=1e-6)
    scaled = (values / top[:, None, None, None]).clamp(0, 1).numpy()
    framed = np.pad(scaled, ((0, 0), (0, 0), (0, GAP), (0, GAP)))
    imsave(path, np.vstack([np.hstack(list(row)) for row in framed]), cmap="magma", vmin=0, vmax=1)
