"""How near the network comes to bare convolutions: the same shapes, on the same machine, in the same run."""

from __future__ import annotations

import torch
from torch import Tensor, nn
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

    given = (random(1), torch.full((GENES,), 80.0), random(model.spec.encoder[1]), random(N_CHANNELS))
    token, base = torch.randn(GENES, model.spec.token, generator=generator), random(1).exp()
    layers: list[tuple[nn.Conv2d, torch.Size]] = []
    hooks = [
        layer.register_forward_pre_hook(lambda layer, inputs: layers.append((layer, inputs[0].shape)))
        for layer in model.unet.modules()
        if isinstance(layer, nn.Conv2d)
    ]
    model(*given, token, base)
    for hook in hooks:
        hook.remove()
    inputs = [torch.randn(shape).contiguous(memory_format=torch.channels_last) for _, shape in layers]

    def bare() -> None:
        for (layer, _), one in zip(layers, inputs, strict=True):
            functional.conv2d(one, layer.weight, layer.bias, layer.stride, layer.padding)

    work = sum(_flop(layer, shape) for layer, shape in layers)
    with freed_memory_kept():  # as the package does
        of_network, of_bare = (
            work / shortest(call, REPEATS) / 1e9 for call in (lambda: model(*given, token, base), bare)
        )
    return {"network_gflops": round(of_network, 1), "bare_gflops": round(of_bare, 1), "share": of_network / of_bare}


def _flop(layer: nn.Conv2d, shape: torch.Size) -> float:
    outputs = shape[0] * layer.out_channels * (shape[2] // layer.stride[0]) * (shape[3] // layer.stride[1])
    return 2.0 * outputs * layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]
