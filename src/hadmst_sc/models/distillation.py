"""The semantic distillation network: features of the H&E that predict expression linearly.

It runs once per slide for all genes. The closed form (:mod:`hadmst_sc.distillation.genes`) fits the linear readout on
the user's own spots.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from hadmst_sc.models.local import LocalUNet, in_windows


class HEStudent(nn.Module):
    """Features that predict expression, and nuisance features that describe staining and light, from stain maps.

    Trained by :mod:`hadmst_sc.train.student`. Local, without normalisation over space: tiles equal the slide.

    Parameters
    ----------
    in_channels
        Number of base maps of :func:`hadmst_sc.section.features.he_features`.
    widths
        Channels of the U-Net's levels.
    features, nuisance
        Channels of the two branches. The second keeps nuisance out of the first; inference does not use it.

    Examples
    --------
    >>> student = hd.models.HEStudent(14, (8, 16, 16), features=4, nuisance=2)
    >>> student.read(np.zeros((14, 20, 24), np.float32), bin_um=10.0).shape
    (4, 20, 24)
    """

    EMBED = 8

    def __init__(self, in_channels: int, widths: tuple[int, int, int], features: int, nuisance: int) -> None:
        super().__init__()
        self.features = features
        self.embedding = nn.Sequential(nn.Linear(1, self.EMBED), nn.SiLU())
        self.unet = LocalUNet(in_channels, widths, self.EMBED, features + nuisance)

    def forward(self, stains: Tensor, log_bin_um: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``(b, features, ny, nx)`` and nuisance ``(b, nuisance, ny, nx)``.

        Parameters
        ----------
        stains
            ``(b, in_channels, ny, nx)``, any size: padded to a multiple of 4.
        log_bin_um
            ``(b, 1)``, ``log2(bin / 10 µm)``: the size of a bin.
        """
        ny, nx = stains.shape[-2:]
        padded = functional.pad(stains, (0, -nx % 4, 0, -ny % 4))
        both = self.unet(padded.contiguous(memory_format=torch.channels_last), self.embedding(log_bin_um))
        return both[:, : self.features, :ny, :nx], both[:, self.features :, :ny, :nx]

    def read(self, stains: np.ndarray, bin_um: float) -> np.ndarray:
        """Features of one section, ``(features, ny, nx)`` float32, from its stain maps ``(in_channels, ny, nx)``."""
        device = next(self.parameters()).device
        log_bin = torch.full((1, 1), math.log2(bin_um / 10), dtype=torch.float32, device=device)
        (features,) = in_windows(lambda maps: self(maps, log_bin)[:1], stains, device)
        return features[0].numpy()
