"""Predict the genes of a section in chunks, in this process or on a cluster, into memory or a sink."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from hadmst_sc.inference.chunk import predict_chunk
from hadmst_sc.inference.cluster import Cluster
from hadmst_sc.inference.shared import Maps, SharedSection, joined
from hadmst_sc.runtime import freed_memory_kept
from hadmst_sc.section.measurement import residual
from hadmst_sc.section.observation import Box, Facts, MapSink

# Maximum per task of a cluster. A worker keeps freed memory only within a task: otherwise one that is short of memory
# would wait forever.
CHUNKS_PER_TASK = 4
MISFITS = ("spot_residual", "max_spot_residual")  # recorded per gene: mean and maximum over spots, relative
Done = tuple[Maps | None, Facts]


class Arrays:
    """All maps in memory, ``(genes, ny, nx)``; zero where nothing was written."""

    def __init__(self, shape: tuple[int, int, int], with_std: bool, n_draws: int) -> None:
        self.mean = np.zeros(shape, np.float32)
        self.std = np.zeros(shape, np.float32) if with_std else None
        self.draws = np.zeros((n_draws, *shape), np.float32) if n_draws else None

    def take(self, genes: np.ndarray, box: Box, maps: Maps) -> None:
        """Write maps of some genes into a box of the grid."""
        here = (slice(int(genes[0]), int(genes[-1]) + 1), *box)
        for whole, part in ((self.mean, maps.mean), (self.std, maps.std), (self.draws, maps.draws)):
            if whole is not None:
                whole[(..., *here)] = part


def warm_up(client: Any) -> list[Any]:
    """Start the imports on every worker in parallel, while this process goes on.

    Returns
    -------
    The tasks. Keep a reference: Dask cancels unfinished tasks that have none.

    Raises
    ------
    RuntimeError
        If the client is closed, or has no worker; see :class:`~hadmst_sc.inference.cluster.Cluster`.
    """
    return Cluster(client).everywhere(_imported)


def _imported() -> None:
    """Do nothing: to call this, a worker imports this module with torch and the rest, which takes seconds."""


def work(
    section: SharedSection, genes: np.ndarray, into: MapSink | None
) -> Generator[tuple[np.ndarray, Maps | None, Facts], None, None]:
    """Predict genes in chunks of ``batch_size``, and yield each chunk when it is done, in any order.

    Yields
    ------
    The genes, their maps (``None`` if they were written to ``into``), and the facts recorded for each gene.
    """
    size, client, alone = section.settings.batch_size, section.settings.client, replace(section.settings, client=None)
    chunks = [genes[start : start + size] for start in range(0, len(genes), size)]
    if client is None:
        yield from _here(section, chunks, into)
        return
    cluster, shared = (
        Cluster(client, into),
        (replace(section, estimator=section.estimator.on_cpu(), settings=alone), into),
    )
    for task, done in cluster.run(_on_worker, shared, tasks_of(chunks, cluster.threads())):
        for chunk, one in zip(task, done, strict=True):
            yield chunk, *one


def _here(
    section: SharedSection, chunks: Sequence[np.ndarray], into: MapSink | None
) -> Iterator[tuple[np.ndarray, Maps | None, Facts]]:
    """Predict in this process; the maps of a chunk are stored while the next chunk is computed."""
    with ThreadPoolExecutor(1) as thread:
        before: list[tuple[np.ndarray, Future[Done]]] = []
        for chunk in chunks:
            maps = predict_within_memory(section, chunk)
            yield from ((done, *away.result()) for done, away in before)
            before = [(chunk, thread.submit(_put_away, section, into, chunk, maps))]
        yield from ((done, *away.result()) for done, away in before)


def tasks_of(chunks: Sequence[np.ndarray], workers: int) -> list[Sequence[np.ndarray]]:
    """Group chunks into tasks of nearly equal size, equally many per worker; larger first, so that all end together."""
    total, workers = len(chunks), max(1, workers)
    n = min(total, workers * -(-total // (workers * CHUNKS_PER_TASK)))
    return [[chunks[i] for i in some] for some in np.array_split(np.arange(total), n)] if n else []


@freed_memory_kept()
def _on_worker(shared: tuple[SharedSection, MapSink | None], chunks: Sequence[np.ndarray]) -> list[Done]:
    """Run a task: its chunks one after the other, as a task has a single thread."""
    section, into = shared
    return [_put_away(section, into, chunk, predict_within_memory(section, chunk)) for chunk in chunks]


def _put_away(section: SharedSection, into: MapSink | None, chunk: np.ndarray, maps: Maps) -> Done:
    """Write the maps to ``into``, if any, and compute the facts recorded for each gene."""
    misfit = residual(maps.mean, section.distilled.panel.counts[:, chunk], section.measurement)
    of_genes = zip(chunk.tolist(), misfit.mean(0).tolist(), misfit.max(0).tolist(), strict=True)
    facts = {gene: dict(zip(MISFITS, values, strict=True)) for gene, *values in of_genes}
    if into is not None:
        std = None if maps.std is None else np.where(section.inside, maps.std, np.nan)
        into.write(chunk, section.crop, np.where(section.inside, maps.mean, np.nan), std, facts)
    return (maps if into is None else None), facts


def predict_within_memory(section: SharedSection, chunk: np.ndarray) -> Maps:
    """:func:`predict_chunk`, with fewer genes at a time or smaller windows when memory runs out."""
    parts: list[Maps] = []
    while len(chunk):
        n = min(section.limits.genes, len(chunk))
        try:
            parts.append(predict_chunk(section, chunk[:n]))
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            section.limits.lower(n)
            torch.cuda.empty_cache()  # does nothing without CUDA
        else:
            chunk = chunk[n:]
    return parts[0] if len(parts) == 1 else joined(parts)


def _out_of_memory(error: Exception) -> bool:
    """True if memory ran out, of the CPU or of a device; torch marks the former only in the text."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
