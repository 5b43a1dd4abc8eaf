"""How near the network comes to bare convolutions: the same shapes, on the same machine, in the same run."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional

from hadmst_sc.allocator import freed_memory_kept
from hadmst_sc.models.hadmst import N_CHANNELS
from hadmst_sc.tl._estimate import shortest
from hadmst_sc.weights import load_model

SIDE, GENES, REPEATS = 384, 4, 5


@torch.inference_mode()
def throughput() -> dict[str, float]:
    """GFLOP/s of one evaluation of a window of genes, and of its convolutions alone."""
    model = load_model("default", torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)

    def random(channels: int) -> Tensor:
        return torch.randn(GENES, channels, SIDE, SIDE, generator=generator)

    condition = model.condition(random(model.spec.encoder[1]), random(N_CHANNELS))
    token, base = torch.randn(GENES, model.spec.token, generator=generator), random(1).exp()
    given = random(1), torch.full((GENES,), 80.0), condition, token, base
    calls: list[tuple[Any, ...]] = []
    conv2d = functional.conv2d

    def recorded(inputs: Tensor, weight: Tensor, bias: Tensor | None = None, *how: Any, **more: Any) -> Tensor:
        found = conv2d(inputs, weight, bias, *how, **more)
        alike = torch.randn(inputs.shape, generator=generator).contiguous(memory_format=torch.channels_last)
        calls.append(((alike, weight, bias, *how), more, 2.0 * found.numel() * weight[0].numel()))
        return found

    with mock.patch.object(functional, "conv2d", recorded):
        model.denoise(*given)

    def bare() -> None:
        for arguments, more, _ in calls:
            conv2d(*arguments, **more)

    work = sum(flop for *_, flop in calls)
    with freed_memory_kept():  # as the package does
        of_network, of_bare = (work / shortest(call, REPEATS) / 1e9 for call in (lambda: model.denoise(*given), bare))
    return {"network_gflops": round(of_network, 1), "bare_gflops": round(of_bare, 1), "share": of_network / of_bare}
