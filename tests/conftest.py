"""What all tests share: a headless backend, reproducible property tests, and the folder of real sections."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "agg")

import pytest
from hypothesis import HealthCheck, settings

# Derandomised, so that a red run is red for everyone; `--hypothesis-profile=explore` looks further.
settings.register_profile("default", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("explore", deadline=None, max_examples=500)
settings.load_profile("default")

ROOT = Path(__file__).resolve().parents[1]

# What needs torch throughout; single tests elsewhere carry the marker. The rest is what `make test-no-torch` runs.
NEEDS_TORCH = (
    "benchmarks",
    "cli",
    "e2e",
    "golden",
    "gpu",
    "platforms",
    "property/test_diffusion.py",
    "reliability",
    "train",
    "unit/test_cost.py",
    "unit/test_gate.py",
    "unit/test_image_features.py",
    "unit/test_models.py",
    "unit/test_settings.py",
    "unit/test_spatial_alignment.py",
    "unit/test_weights.py",
)
HAS_TORCH = find_spec("torch") is not None
collect_ignore = [] if HAS_TORCH else [*NEEDS_TORCH]


def pytest_report_header() -> str | None:
    return None if HAS_TORCH else f"torch is not installed; left out: {', '.join(NEEDS_TORCH)}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not HAS_TORCH and item.get_closest_marker("torch"):
            item.add_marker(pytest.mark.skip(reason="needs torch"))
        if item.get_closest_marker("exhaustive") and not os.environ.get("HADMST_EXHAUSTIVE"):
            item.add_marker(pytest.mark.skip(reason="set HADMST_EXHAUSTIVE=1"))


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


_SECONDS: dict[str, float] = {}  # of an evaluation of the network, by its sizes and the device


@pytest.fixture(autouse=True)
def _network_is_timed_once():
    """Runs time the network to tell their cost, a quarter of a small section's run; here a process does it once."""
    cost = sys.modules.get("hadmst_sc.inference.cost")
    if cost is None or hasattr(cost._seconds_of_an_evaluation, "once"):
        return
    time_it = cost._seconds_of_an_evaluation

    def once(network, device) -> float:
        key = f"{network.spec} {device}"
        if key not in _SECONDS:
            _SECONDS[key] = time_it(network, device)
        return _SECONDS[key]

    once.once = True
    cost._seconds_of_an_evaluation = once


@pytest.fixture(autouse=True)
def _close_figures():
    """Figures do not outlive their test; matplotlib is only touched where a test has loaded it."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
