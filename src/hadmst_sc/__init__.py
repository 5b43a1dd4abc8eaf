"""Super-resolved gene expression from H&E and spots, from SpatialData into SpatialData.

Importing the package is cheap: submodules, and with them torch, matplotlib and spatialdata, load when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors and type checkers; at run time `__getattr__` does it
    from types import ModuleType

    from hadmst_sc import datasets, io, metrics, models, pl, pp, tl, train

__version__ = "0.1.0"

__all__ = ["__version__", "datasets", "io", "metrics", "models", "pl", "pp", "tl", "train"]


def __getattr__(name: str) -> ModuleType:  # PEP 562
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'. Available: {__all__}.")


def __dir__() -> list[str]:
    return __all__
