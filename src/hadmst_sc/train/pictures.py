"""Picture of the predicted maps of one crop with every checkpoint, because losses do not show how maps look."""

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
TOP = 0.995  # quantile of a gene's true map that is shown white


@torch.no_grad()
def maps_of(module: TrainingStep, batch: Batch, draw_noise: Tensor) -> Tensor:
    """Maps of ``batch.drawn``, ``(g, len(COLUMNS), n, n)`` in gene means; see :class:`TrainingStep` for the noise."""
    chosen, inputs = batch.drawn, module.inputs(batch)
    features, channels, base = (part[chosen] for part in inputs[:3])
    residual, model = Residual(base[:, 0]), module.model
    mean = model.mean(model.condition(features, channels), batch.token[chosen], base)[:, 0]
    draws = residual.decode(module.draw(batch, inputs, draw_noise).draws)
    maps = [batch.spots[chosen], residual.base, mean, *draws, batch.target[chosen]]
    return torch.stack(maps, 1) * batch.inside[chosen][:, None]


def save_grid(maps: Tensor, path: Path) -> None:
    """Save one row per gene with the columns ``COLUMNS``; each row is scaled to its truth."""
    from matplotlib.image import imsave  # imported here so that other uses of training do not load it

    values = maps.cpu().log1p()
    top = torch.quantile(values[:, -1].flatten(1), TOP, dim=1).clamp(min=1e-6)
    scaled = (values / top[:, None, None, None]).clamp(0, 1).numpy()
    framed = np.pad(scaled, ((0, 0), (0, 0), (0, GAP), (0, GAP)))
    imsave(path, np.vstack([np.hstack(list(row)) for row in framed]), cmap="magma", vmin=0, vmax=1)
