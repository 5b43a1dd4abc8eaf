"""The genes of a section chunk by chunk, in this process or on a cluster, into memory or wherever they are to go."""

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

# To a task of a cluster at most: a worker keeps freed memory within a task alone, else one that is short of it would
# wait for ever.
CHUNKS_PER_TASK = 4
MISFITS = ("spot_residual", "max_spot_residual")  # relative, over the spots: what is recorded of a gene
Done = tuple[Maps | None, Facts]


class Arrays:
    """All maps in memory, ``(genes, ny, nx)``; zero where nothing was put."""

    def __init__(self, shape: tuple[int, int, int], with_std: bool, n_draws: int) -> None:
        self.mean = np.zeros(shape, np.float32)
        self.std = np.zeros(shape, np.float32) if with_std else None
        self.draws = np.zeros((n_draws, *shape), np.float32) if n_draws else None

    def take(self, genes: np.ndarray, box: Box, maps: Maps) -> None:
        """Put maps of some genes on a box of the grid."""
        here = (slice(int(genes[0]), int(genes[-1]) + 1), *box)
        for whole, part in ((self.mean, maps.mean), (self.std, maps.std), (self.draws, maps.draws)):
            if whole is not None:
                whole[(..., *here)] = part


def warm_up(client: Any) -> list[Any]:
    """Have every worker import what it will need, all at once, while this process goes on.

    Returns
    -------
    The tasks; when nobody holds them any more, Dask forgets those that are not done.

    Raises
    ------
    RuntimeError
        If the client is closed, or has no worker; see :class:`~hadmst_sc.inference.cluster.Cluster`.
    """
    return Cluster(client).everywhere(_imported)


def _imported() -> None:
    """Whoever is to call this imports it first, and with it torch and the rest: seconds."""


def work(
    section: SharedSection, chunks: Sequence[np.ndarray], into: MapSink | None
) -> Generator[tuple[np.ndarray, Maps | None, Facts], None, None]:
    """Each chunk of genes as it is done, in any order.

    Yields
    ------
    The genes, their maps (``None`` if they went ``into`` somewhere), and what is recorded of each.
    """
    client, alone = section.settings.client, replace(section.settings, client=None)
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
    """In this process; maps of a chunk are put away while those of the next are begun."""
    with ThreadPoolExecutor(1) as thread:
        before: list[tuple[np.ndarray, Future[Done]]] = []
        for chunk in chunks:
            maps = predict_within_memory(section, chunk)
            yield from ((done, *away.result()) for done, away in before)
            before = [(chunk, thread.submit(_put_away, section, into, chunk, maps))]
        yield from ((done, *away.result()) for done, away in before)


def tasks_of(chunks: Sequence[np.ndarray], workers: int) -> list[Sequence[np.ndarray]]:
    """Chunks in tasks of nearly the same size, as many for each worker; larger ones first, so that all end together."""
    total, workers = len(chunks), max(1, workers)
    n = min(total, workers * -(-total // (workers * CHUNKS_PER_TASK)))
    return [[chunks[i] for i in some] for some in np.array_split(np.arange(total), n)] if n else []


@freed_memory_kept()
def _on_worker(shared: tuple[SharedSection, MapSink | None], chunks: Sequence[np.ndarray]) -> list[Done]:
    """A task: its chunks one after the other, as a worker has a thread of its own and no more."""
    section, into = shared
    return [_put_away(section, into, chunk, predict_within_memory(section, chunk)) for chunk in chunks]


def _put_away(section: SharedSection, into: MapSink | None, chunk: np.ndarray, maps: Maps) -> Done:
    """Maps to where they are to go, and what is recorded of each gene."""
    misfit = residual(maps.mean, section.distilled.panel.counts[:, chunk], section.measurement)
    of_genes = zip(chunk.tolist(), misfit.mean(0).tolist(), misfit.max(0).tolist(), strict=True)
    facts = {gene: dict(zip(MISFITS, values, strict=True)) for gene, *values in of_genes}
    if into is not None:
        std = None if maps.std is None else np.where(section.inside, maps.std, np.nan)
        into.write(chunk, section.crop, np.where(section.inside, maps.mean, np.nan), std, facts)
    return (maps if into is None else None), facts


def predict_within_memory(section: SharedSection, chunk: np.ndarray) -> Maps:
    """:func:`predict_chunk`, of fewer genes at a time or in smaller windows where memory does not suffice."""
    parts: list[Maps] = []
    while len(chunk):
        n = min(section.limits.genes, len(chunk))
        try:
            parts.append(predict_chunk(section, chunk[:n]))
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            section.limits.lower(n)
            torch.cuda.empty_cache()  # nothing where there is no such device
        else:
            chunk = chunk[n:]
    return parts[0] if len(parts) == 1 else joined(parts)


def _out_of_memory(error: Exception) -> bool:
    """Of the processor's memory or of a device's; torch tells the former by its text alone."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
