"""Speed of the network against bare convolutions, and by `torch.compile`.

The same shapes, on the same machine, in the same run; and what a second process adds on this machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._inductor import config
from torch._inductor.exc import InductorError
from torch.nn import functional

from hadmst_sc.inference.progress import shortest
from hadmst_sc.models import HadmstModel
from hadmst_sc.models.diffusion import N_CHANNELS
from hadmst_sc.models.weights import load_model
from hadmst_sc.runtime import freed_memory_kept

SIDE, GENES, REPEATS = 384, 4, 5
SECONDS = 8.0  # that processes are given


@torch.inference_mode()
def throughput() -> dict[str, float]:
    """GFLOP/s of one evaluation of a window of genes, and of its convolutions alone."""
    model = load_model("default", torch.device("cpu"))
    given = inputs(model)
    calls: list[tuple[Any, ...]] = []
    conv2d = functional.conv2d

    def recorded(inputs: Tensor, weight: Tensor, bias: Tensor | None = None, *how: Any, **more: Any) -> Tensor:
        found = conv2d(inputs, weight, bias, *how, **more)
        alike = torch.randn_like(inputs).contiguous(memory_format=torch.channels_last)
        calls.append(((alike, weight, bias, *how), more, 2.0 * found.numel() * weight[0].numel()))
        return found

    with mock.patch.object(functional, "conv2d", recorded):
        model.denoise(*given)

    def bare() -> None:
        for arguments, more, _ in calls:
            conv2d(*arguments, **more)

    work = sum(flop for *_, flop in calls)
    of_network, of_bare = (work / seconds(call) / 1e9 for call in (lambda: model.denoise(*given), bare))
    return {"network_gflops": round(of_network, 1), "bare_gflops": round(of_bare, 1), "share": of_network / of_bare}


@torch.no_grad()  # weights are not frozen in inference mode
def compiled() -> dict[str, float]:
    """Seconds of an evaluation as the package does it, and by `torch.compile`; nothing where no compiler of C++ is."""
    model = load_model("default", torch.device("cpu"))
    given = inputs(model)
    with config.patch(freezing=True):
        faster = torch.compile(model.denoise)
        try:
            faster(*given)
        except InductorError:
            return {}
        return {"eager_s": seconds(lambda: model.denoise(*given)), "compiled_s": seconds(lambda: faster(*given))}


def two_over_one(lasting: float = SECONDS) -> float:
    """Work of two processes of one thread over that of one: more than that no two workers gain on this machine."""
    with ProcessPoolExecutor(2, get_context("spawn")) as processes:
        list(processes.map(evaluations, [lasting / 4] * 2))  # both are there
        alone = processes.submit(evaluations, lasting).result()
        return sum(processes.map(evaluations, [lasting] * 2)) / alone


@torch.inference_mode()
def evaluations(lasting: float) -> float:
    """Evaluations of the network by one thread, a second."""
    torch.set_num_threads(1)
    model = load_model("default", torch.device("cpu"))
    given = inputs(model)
    with freed_memory_kept():
        model.denoise(*given)
        started, n = time.perf_counter(), 0
        while (spent := time.perf_counter() - started) < lasting:
            model.denoise(*given)
            n += 1
    return n / spent


def inputs(model: HadmstModel) -> tuple[Tensor, ...]:
    """Random arguments of :meth:`HadmstModel.denoise` for a window of some genes."""
    generator = torch.Generator().manual_seed(0)

    def random(channels: int) -> Tensor:
        return torch.randn(GENES, channels, SIDE, SIDE, generator=generator)

    condition = model.condition(random(model.spec.encoder[1]), random(N_CHANNELS))
    token = torch.randn(GENES, model.spec.token, generator=generator)
    return random(1), torch.ones(GENES), condition, token


def seconds(call: Callable[[], Any]) -> float:
    """The shortest of some, with memory as the package keeps it."""
    with freed_memory_kept():
        return shortest(call, REPEATS)
