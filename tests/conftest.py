"""What all tests share: a headless backend, reproducible property tests, and the folder of real sections."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "agg")

import pytest
from hypothesis import HealthCheck, settings

# Derandomised, so that a red run is red for everyone; `--hypothesis-profile=explore` looks further.
settings.register_profile("default", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("explore", deadline=None, max_examples=500)
settings.load_profile("default")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real sections; the test skips without it."""
    folder = Path(os.environ.get("HADMST_DATA", ROOT / ".." / "shared" / "data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real sections in {folder}; set HADMST_DATA to their folder")
    return folder


@pytest.fixture(autouse=True)
def _close_figures():
    """Figures do not outlive their test; matplotlib is only touched where a test has loaded it."""
    yield
    import sys

    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
