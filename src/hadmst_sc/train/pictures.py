"""What the model makes of one crop, as a picture beside every checkpoint: losses do not show what a map looks like."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hadmst_sc.diffusion.denoiser import Residual
from hadmst_sc.train.data import Batch
from hadmst_sc.train.losses import TrainingStep

COLUMNS = ("spots", "closed form", "estimate", "draw", "another draw", "truth")
GAP = 2  # bins between maps
TOP = 0.995  # quantile of a gene's true map that is white


@torch.no_grad()
def maps_of(module: TrainingStep, batch: Batch, draw_noise: Tensor) -> Tensor:
    """Maps of the genes that are drawn, ``(g, len(COLUMNS), n, n)`` in gene means; noise as for the module."""
    chosen, inputs = batch.drawn, module.inputs(batch)
    features, channels, base = (part[chosen] for part in inputs[:3])
    residual, model = Residual(base[:, 0]), module.model
    mean = model.mean(model.condition(features, channels), batch.token[chosen], base)[:, 0]
    draws = residual.decode(module.draw(batch, inputs, draw_noise).draws)
    maps = [batch.spots[chosen], residual.base, mean, *draws, batch.target[chosen]]
    return torch.stack(maps, 1) * batch.inside[chosen][:, None]


def save_grid(maps: Tensor, path: Path) -> None:
    """One row per gene, columns as in ``COLUMNS``; a row has one scale, that of its truth."""
    from matplotlib.image import imsave  # here: training machines need not load it

    values = maps.cpu().log1p()
    top = torch.quantile(values[:, -1].flatten(1), TOP, dim=1).clamp(min=1e-6)
    scaled = (values / top[:, None, None, None]).clamp(0, 1).numpy()
    framed = np.pad(scaled, ((0, 0), (0, 0), (0, GAP), (0, GAP)))
    imsave(path, np.vstack([np.hstack(list(row)) for row in framed]), cmap="magma", vmin=0, vmax=1)
