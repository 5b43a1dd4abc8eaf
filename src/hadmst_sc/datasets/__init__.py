"""Sections for training and tests: phantoms with known truth, made offline; public sections, downloaded or loaded."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {"phantom": "visium", "available": "public", "load": "public", "load_cells": "public", "bin_cells": "public"}
_HOME |= {f"visium_{name}": "download" for name in ("mouse_brain", "human_breast_cancer", "human_lymph_node")}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:  # lazy: the simulator must be importable without spatialdata
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
