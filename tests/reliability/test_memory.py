"""Out of memory is survived: the same result, said once; and what cannot be survived is an error with a remedy."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from hadmst_sc import tl
from hadmst_sc.inference import workers as _memory
from hadmst_sc.phantom.simulate import simulate

ERRORS = {
    "processor": RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"),
    "device": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "numpy": MemoryError("Unable to allocate 3.00 GiB for an array"),
}
SETTINGS = {"gate": False, "align": False, "window": 128}


@pytest.fixture(scope="module")
def obs():
    return simulate(7, size_um=1000.0, n_genes=5).observation


@pytest.fixture(scope="module")
def reference(obs):
    return tl.predict(obs, **SETTINGS)


def too_much(monkeypatch, error: Exception, genes: int, window: int) -> list[tuple[int, int]]:
    """From here on more genes, or a larger window, are more than there is memory for; holds what was tried."""
    tried, predict_chunk = [], _memory.predict_chunk

    def limited(section, chunk):
        tried.append((len(chunk), section.limits.window))
        if len(chunk) > genes or section.limits.window > window:
            raise error
        return predict_chunk(section, chunk)

    monkeypatch.setattr(_memory, "predict_chunk", limited)
    return tried


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize(("genes", "window"), [(2, 128), (1, 64)])
def test_fewer_genes_or_smaller_windows_give_the_same(obs, reference, monkeypatch, caplog, kind, genes, window):
    tried = too_much(monkeypatch, ERRORS[kind], genes, window)
    with caplog.at_level(logging.WARNING, logger="hadmst_sc"):
        found = tl.predict(obs, **SETTINGS)
    for ours, theirs in ((found.mean, reference.mean), (found.std, reference.std)):
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()
    said = [record.message for record in caplog.records if "out of memory" in record.message]
    assert said and len(said) == len(set(said))  # of each limit once
    assert tried[-1] == (1, window)  # of five genes the last, and no second try with what was too much
    assert sum(size > genes or edge > window for size, edge in tried) == len(said)


def test_what_cannot_be_made_smaller_is_an_error_with_a_remedy(obs, monkeypatch):
    too_much(monkeypatch, ERRORS["processor"], 0, 0)
    with pytest.raises(MemoryError, match=r"Pass a larger `bin_um=`"):
        tl.predict(obs, **SETTINGS)


def test_other_errors_are_not_taken_for_it(obs, monkeypatch):
    too_much(monkeypatch, RuntimeError("shapes do not match"), 0, 0)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        tl.predict(obs, **SETTINGS)
