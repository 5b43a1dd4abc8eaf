"""Genes beside those that were asked for, from which the components of a section are computed too."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from spatialdata import SpatialData

from hadmst_sc.io.counts import matrix_of, most_informative, rows_as_csr
from hadmst_sc.io.genes import gene_columns
from hadmst_sc.io.read import computed_here
from hadmst_sc.io.values import broken, rounded
from hadmst_sc.section.observation import Observation

# On held-out spots of two breast sections and one olfactory bulb, ten genes were predicted better with the components
# of 200 genes than with their own, and as well with those of 500 as of 1,000.
N_GENES = 500


@computed_here()
def with_other_genes(sdata: SpatialData, obs: Observation, obsm_key: str | None = None) -> Observation:
    """Add the most informative other genes of the table, up to ``N_GENES`` in all, behind those of an observation.

    Genes with values that are no counts are left out. An observation of ``obsm_key`` has no other genes.
    """
    source, wanted = obs.source, N_GENES - len(obs.genes)
    if source is None or obs.rows is None or obsm_key is not None or wanted <= 0:
        return obs
    matrix = matrix_of(sdata.tables[source.table_key], source.table_key, source.layer)
    columns = gene_columns(matrix.var)
    columns = columns[~matrix.var.index[columns].isin(obs.genes)]
    counts = rows_as_csr(matrix.values, obs.rows, columns)
    usable = np.ones(len(columns), bool)
    usable[counts.indices[broken(counts.data)]] = False
    counts, columns = counts[:, usable], columns[usable]
    counts.data = rounded(counts.data)
    ranked = most_informative(counts)[:wanted]
    visible = obs.measurement.area / obs.measurement.area.max()  # as far as a spot at the border was on the image
    more = counts.tocsc()[:, ranked].toarray() * np.where(visible < 1 - 1e-6, visible, 1)[:, None]
    return replace(
        obs,
        counts=np.concatenate([obs.counts, more.astype(np.float32)], 1),
        genes=(*obs.genes, *map(str, matrix.var.index[columns[ranked]])),
    )
