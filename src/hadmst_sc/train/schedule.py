"""Learning rate and weight average for the student and the model."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor


def cosine(peak: float, step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then cosine decay to 3 % of the peak."""
    shape = 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    return peak * min(1.0, (step + 1) / warmup) * (0.03 + 0.97 * shape)


def ema(decay: float) -> Any:
    """Exponential moving average of weights, with faster decay in early steps because the first weights are noise."""

    def update(average: Tensor, new: Tensor, n: Tensor | int) -> Tensor:
        d = min(decay, (1 + float(n)) / (10 + float(n)))
        return average.lerp(new, 1 - d)

    return update
