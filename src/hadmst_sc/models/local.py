"""The local U-Net ``F``: three levels and no operation that averages over the window, so tiling is exact.

It goes down by space-to-depth (stride-2 convolutions of width 2) and up by repetition; neither reads beyond its own
cell. The reach is then the sum of the 3 × 3 convolutions' reaches, and stays within the halo that the spec declares.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from hadmst_sc.section.grid import windows


def silence(layer: nn.Module) -> None:
    """Set all parameters of a layer to zero, so that its output is zero at initialisation."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions, modulated by the embedding; the identity at initialisation."""

    def __init__(self, channels: int, embed: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulate = nn.Linear(embed, 2 * channels)
        silence(self.second)
        silence(self.modulate)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """Apply the block to ``h`` ``(b, channels, ny, nx)`` with an embedding ``(b, embed)``; same shape."""
        gain, shift = self.modulate(embedding)[:, :, None, None].chunk(2, 1)
        inner = torch.addcmul(shift, self.first(functional.silu(h)), 1 + gain)
        return h + self.second(_silu(inner))


class LocalUNet(nn.Module):
    """U-Net from ``(b, in_channels, ny, nx)`` and an embedding ``(b, embed)`` to ``(b, out_channels, ny, nx)``.

    ``ny`` and ``nx`` must be multiples of 4. The caller decides if the head starts at zero.
    """

    def __init__(self, in_channels: int, widths: tuple[int, int, int], embed: int, out_channels: int = 1) -> None:
        super().__init__()
        a, b, c = widths
        self.stem = nn.Conv2d(in_channels, a, 3, padding=1)
        self.down_1 = nn.Conv2d(a, b, 2, stride=2)
        self.block_1 = ResidualBlock(b, embed)
        self.down_2 = nn.Conv2d(b, c, 2, stride=2)
        self.block_2 = nn.ModuleList([ResidualBlock(c, embed), ResidualBlock(c, embed)])
        self.up_2 = nn.Conv2d(c, b, 1)
        self.block_3 = ResidualBlock(b, embed)
        self.up_1 = nn.Conv2d(b, a, 1)
        self.block_4 = ResidualBlock(a, embed)
        self.head = nn.Conv2d(a, out_channels, 1)

    def forward(self, inputs: Tensor, embedding: Tensor) -> Tensor:
        """Apply all layers; see the class for the shapes."""
        return self.above(self.stem(inputs), embedding)

    def above(self, full: Tensor, embedding: Tensor) -> Tensor:
        """Apply all layers after the first one, to its output ``(b, widths[0], ny, nx)``."""
        half = self.block_1(self.down_1(full), embedding)
        quarter = self.down_2(half)
        for block in self.block_2:
            quarter = block(quarter, embedding)
        half = self.block_3(plus_repeated(half, self.up_2(quarter)), embedding)
        full = self.block_4(plus_repeated(full, self.up_1(half)), embedding)
        return self.head(_silu(full))


def _silu(h: Tensor) -> Tensor:
    """SiLU of a tensor that is not used again; in place if gradients are off (memory-bound)."""
    return functional.silu(h, inplace=not torch.is_grad_enabled())


def plus_repeated(fine: Tensor, coarse: Tensor) -> Tensor:
    """Sum of ``fine`` and ``coarse`` with every bin repeated 2 × 2, without storing the repetition."""
    b, c, ny, nx = fine.shape
    cells = fine.reshape(b, c, ny // 2, 2, nx // 2, 2) + coarse[:, :, :, None, :, None]
    return cells.reshape(fine.shape)


CORE, HALO, ALIGN = 512, 64, 4  # bins; the halo exceeds the reach of student, alignment and encoder


@torch.inference_mode()
def in_windows(
    network: Callable[[Tensor], tuple[Tensor, ...]], maps: np.ndarray, device: torch.device, *, core: int = CORE
) -> list[Tensor]:
    """Apply a local network to a slide window by window; results on the CPU.

    Parameters
    ----------
    network
        Function of ``(1, c, y, x)`` that returns maps ``(1, f, y, x)`` and reaches no further than ``HALO`` bins.
    maps
        ``(c, ny, nx)`` float32.
    device
        Device of the network.
    core
        Edge of the part that a window writes, bins.

    Returns
    -------
    ``(1, f, ny, nx)`` for each of the network's maps.
    """
    ny, nx = maps.shape[1:]
    whole: list[Tensor] = []
    for window in windows((ny, nx), core, HALO, ALIGN):
        # End at the border of the slide, not beyond it: there the layers pad as they do for a whole slide.
        window = window.within((ny, nx))
        part_of_it = torch.as_tensor(np.ascontiguousarray(maps[(None, slice(None), *window.read)]), device=device)
        with torch.autocast(device.type, enabled=False):  # regardless of the caller's setting
            made = network(part_of_it)
        whole = whole or [torch.empty((1, part.shape[1], ny, nx), dtype=part.dtype, device="cpu") for part in made]
        for all_of_it, part in zip(whole, made, strict=True):
            all_of_it[(..., *window.write)] = part[(..., *window.keep)].cpu()
    return whole
