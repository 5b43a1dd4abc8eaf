"""The script for a GPU keeps what is done, whatever a later part dies of, and its slide has the size asked for."""

from __future__ import annotations

import json

import gpu
import numpy as np
import pytest
import torch


def test_more_genes_are_shares_of_those_drawn(monkeypatch):
    monkeypatch.setattr(gpu, "N_DRAWN", 8)
    few, many = gpu.slide(60, 8), gpu.slide(60, 20)
    assert abs(len(few.spots) - 60) <= 15 and many.counts.shape == (len(few.spots), 20)
    assert np.array_equal(many.counts[:, :8], few.counts)
    assert (many.counts[:, 8:16] <= few.counts).all() and many.counts[:, 8:16].sum() < few.counts.sum()


def test_parts_are_kept_though_one_fails_and_one_is_late(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "parts", lambda options: [("good", lambda: {"seconds": 1.5}), ("bad", lambda: 1 / 0)])
    record = gpu.main(["--device", "cpu", "--output", str(tmp_path)])
    assert record["parts"] == {"good": {"seconds": 1.5}, "bad": {"failed": "ZeroDivisionError: division by zero"}}
    kept = json.loads((tmp_path / "gpu.json").read_text())
    assert gpu.render(kept) + "\n" == (tmp_path / "gpu.md").read_text() and "| good | seconds 1.5" in gpu.render(kept)
    late = gpu.main(["--device", "cpu", "--minutes", "-1", "--output", str(tmp_path)])
    assert late["parts"]["good"] == {"skipped": "begun later than -1 min"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_message_names_what_runs(tmp_path):
    with pytest.raises(SystemExit, match=r"`--device cuda` needs a CUDA device, but there is none. Try `--device cpu`"):
        gpu.main(["--output", str(tmp_path)])
