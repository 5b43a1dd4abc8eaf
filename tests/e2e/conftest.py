from __future__ import annotations

import pytest

import hadmst_sc as hd

IMAGE = "phantom_full_image"


@pytest.fixture(scope="session")
def solved():
    """The default phantom with 8 genes, super-resolved with the default settings; do not change it."""
    sdata = hd.datasets.phantom(n_genes=8)
    hd.tl.superresolve(sdata, IMAGE, show_progress_bar=False)
    return sdata


@pytest.fixture
def phantom():
    """A smaller phantom, not yet super-resolved."""
    return hd.datasets.phantom(seed=1, n_genes=4, size_um=800.0)
