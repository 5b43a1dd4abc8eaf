"""Semantic distillation: what the network takes from the H&E, once per slide, for every gene alike."""

from __future__ import annotations

from torch import Tensor, nn


class HEEncoder(nn.Module):
    """Distilled H&E context to features; local, with a reach of two bins.

    The context already carries the distillation against this section's own spots (its leading metagenes); the encoder
    learns what of their neighbourhood matters. No normalisation over space: tiles must equal the slide.
    """

    def __init__(self, in_channels: int, hidden: int, out_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, hidden, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(hidden, out_channels, 1),
        )

    def forward(self, context: Tensor) -> Tensor:
        """``(b, in_channels, ny, nx)`` to ``(b, out_channels, ny, nx)``."""
        return self.layers(context)
