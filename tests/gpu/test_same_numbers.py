"""The numbers of a GPU are the CPU's to half precision; noise is drawn on the CPU, so draws can be compared too."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hadmst_sc.models.weights import load_model, self_test
from hadmst_sc.phantom.simulate import simulate
from hadmst_sc.tl import predict

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="no CUDA device here; run `pytest -m gpu` where there is one"
    ),
]


def test_self_test_passes_on_the_gpu():
    assert self_test(load_model("default", "cuda")) <= 1e-4


def test_estimate_and_spread_are_those_of_the_cpu():
    obs = simulate(940_000, size_um=960.0, n_genes=4).observation
    cpu, gpu = (predict(obs, n_samples=2, device=device) for device in ("cpu", "cuda"))
    assert np.abs(cpu.mean - gpu.mean).max() <= 2e-2 * cpu.mean.max()
    assert np.abs(cpu.std - gpu.std).max() <= 5e-2 * cpu.std.max()
