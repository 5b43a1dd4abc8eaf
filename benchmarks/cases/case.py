"""One section with its truth, and the parts that several kinds of it share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import disturb
import downstream
import numpy as np
import scores
from anndata import AnnData
from scores import Scores

from hadmst_sc import metrics
from hadmst_sc.section.observation import Observation, Prediction

MIN_PREVALENCE = 0.05  # of the spots, for a gene to be scored
ByScale = dict[str, Scores]


@dataclass(frozen=True, eq=False)
class Case:
    """One section with its truth."""

    section: Observation  # all of it, for what is told about it
    given: tuple[Observation, ...]  # to a method: one, or one per fold
    score: Callable[[Sequence[Prediction]], ByScale]  # from the predictions of each of those, in that order, to scores
    kinds: tuple[str, ...] = ()  # what drives each gene; "real" where nobody knows
    references: Mapping[str, Callable[[], ByScale]] = field(default_factory=dict)  # ceilings, the truth, the spots
    n_scored: int | None = None  # so many of the genes are scored, the first; None: all

    def about(self) -> dict[str, Any]:
        """Genes, what drives them, and their mean counts per spot."""
        obs, n = self.section, slice(self.n_scored)
        return {
            "n_spots": len(obs.spots),
            "bins": int(obs.inside.sum()),
            "genes": list(obs.genes[n]),
            "kinds": list(self.kinds or ["real"] * len(obs.genes[n])),
            "counts_per_spot": np.round(obs.counts[:, n].mean(0, dtype=float), 4).tolist(),
        }


def disturbed(case: Case, kind: str, by: float) -> Case:
    """The case with its section disturbed; the truth stays."""
    return replace(case, given=tuple(disturb.DISTURBANCES[kind](obs, by) for obs in case.given))


def abundant(table: AnnData, n_genes: int) -> list[str]:
    """Names of the genes with the most counts, of those seen in enough spots; most abundant first."""
    counts = table.X.toarray() if hasattr(table.X, "toarray") else np.asarray(table.X)
    seen = np.flatnonzero((counts > 0).mean(0) >= MIN_PREVALENCE)
    return table.var_names[seen[np.argsort(-counts[:, seen].sum(0), kind="stable")][:n_genes]].tolist()


def of_maps(
    predicted: np.ndarray,
    truth: np.ndarray,
    inside: np.ndarray,
    of_genes: Callable[..., Scores],
    *,
    uses: bool = True,
) -> Scores:
    """Scores of maps ``(genes, ny, nx)`` in the bins inside; with ``uses`` those of what users do next, too."""
    found = of_genes(predicted, truth, inside) | {
        "coherence": scores.coherence(predicted, truth, inside),
        "resampled": scores.resampled(predicted[:, inside], truth[:, inside], np.argwhere(inside)),
    }
    if uses:
        found["ssim"] = metrics.ssim(predicted, truth, inside)
        found["moran"] = downstream.moran_agreement(predicted, truth, inside)
    return found
