"""Scores of predicted maps against a truth: of arrays, and of results against measured sections."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hadmst_sc.metrics.maps import coverage, crps, deviance, gene_coherence, pearson, rmse, spread_over_error, ssim

if TYPE_CHECKING:
    from hadmst_sc.metrics.results import score

__all__ = ["coverage", "crps", "deviance", "gene_coherence", "pearson", "rmse", "score", "spread_over_error", "ssim"]


def __getattr__(name: str) -> Any:  # scores of arrays load no spatialdata
    if name == "score":
        return import_module(f"{__name__}.results").score
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}. Available: {__all__}.")
