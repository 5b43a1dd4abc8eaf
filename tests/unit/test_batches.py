"""Genes that are computed at a time."""

from __future__ import annotations

import pytest

import hadmst_sc as hd
from hadmst_sc.inference import shared, workers


@pytest.fixture(scope="module")
def obs():
    sdata = hd.datasets.phantom(n_genes=20, size_um=600.0)
    return hd.io.read_observation(sdata, "phantom_full_image", bin_um=20.0)


@pytest.mark.parametrize(
    ("settings", "largest", "sizes"),
    [
        ({"model": None}, shared.MAX_BINS, [16, 4]),
        ({"model": None}, 1, [4] * 5),
        ({"model": None, "gene_chunk": 5}, 1, [5] * 4),
        ({"model": "default", "gate": False}, shared.MAX_BINS, [4] * 5),
    ],
    ids=["closed form", "large section", "as asked for", "network"],
)
def test_the_genes_at_a_time_fit_the_estimator_and_the_section(obs, settings, largest, sizes, monkeypatch):
    found, predict = [], workers.predict_chunk

    def counted(section, genes):
        found.append(len(genes))
        return predict(section, genes)

    monkeypatch.setattr(workers, "predict_chunk", counted)
    monkeypatch.setattr(shared, "MAX_BINS", largest)
    hd.tl.predict(obs, align=False, show_progress_bar=False, **settings)
    assert found == sizes
