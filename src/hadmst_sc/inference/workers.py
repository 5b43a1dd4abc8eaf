"""Predict the genes of a section in chunks, in this process or on a cluster, into memory or a sink.

On a cluster, all tasks complete even if workers die, or one error says what is wrong. Dask repeats a task whose worker
died. It does not restore data that the client sent, and it waits forever for workers that never come, or for an answer
to a client that was closed meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_until
from contextlib import suppress
from dataclasses import replace
from threading import Thread
from typing import Any, TypeVar

import dask
import numpy as np
import torch

from hadmst_sc.inference.chunk import predict_chunk
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

    def __init__(self, shape: tuple[int, int, int], *, with_std: bool = False, n_samples: int = 0) -> None:
        self.mean = np.zeros(shape, np.float32)
        self.std = np.zeros(shape, np.float32) if with_std else None
        self.draws = np.zeros((n_samples, *shape), np.float32) if n_samples else None

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
        If the client is closed, or has no worker; see :class:`~hadmst_sc.inference.workers.Cluster`.
    """
    return Cluster(client).everywhere(_imported)


def _imported() -> None:
    """Do nothing: to call this, a worker imports this module with torch and the rest, which takes seconds."""


def work(
    section: SharedSection, genes: np.ndarray, into: MapSink | None
) -> Generator[tuple[np.ndarray, Maps | None, Facts], None, None]:
    """Predict genes in chunks of the section's ``batch_size``, and yield each chunk when it is done, in any order.

    Yields
    ------
    The genes, their maps (``None`` if they were written to ``into``), and the facts recorded for each gene.
    """
    size, client, alone = section.batch_size, section.settings.client, replace(section.settings, client=None)
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
            # torch marks that the CPU's memory ran out only in the text
            if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
                raise
            section.limits.lower(n)
            torch.cuda.empty_cache()  # does nothing without CUDA
        else:
            chunk = chunk[n:]
    return parts[0] if len(parts) == 1 else joined(parts)


Task = TypeVar("Task")
Result = TypeVar("Result")

PATIENCE = 30.0  # seconds without a worker after which a cluster counts as gone; Dask's own setting takes precedence
SETTING = "distributed.scheduler.no-workers-timeout"
LOOK = 2.0  # seconds between two checks of the workers
TICK = 0.02  # seconds between two checks of the tasks
LOSSES = 3  # times in a row that all data sent by the client may be lost before a run gives up
SHORT_OF_MEMORY = "Usually memory ran out: give each worker more (`memory_limit=`), or pass `batch_size=1`"
KEPT = " Genes that are done are kept: the same call resumes from there."
HERE = "Or pass `client=None` to compute in this process."


class _Lost(Exception):
    """Workers or the connection to them were lost, and with them the data that the client had sent."""


class Cluster:
    """The workers of a client during one run.

    Parameters
    ----------
    client
        A ``dask.distributed.Client``.
    into
        Sink that keeps the results; ``None`` if nothing is kept.

    Raises
    ------
    RuntimeError
        If the client is closed or asynchronous; later if there is no worker for ``PATIENCE`` seconds, if workers die
        repeatedly, or if one fails. The message names ``client``.
    """

    def __init__(self, client: Any, into: MapSink | None = None) -> None:
        self.client, self.into = client, into
        if client.asynchronous:
            raise self._gone("to be synchronous, but is asynchronous. Pass `client=distributed.Client(address)`")
        self.patience = dask.utils.parse_timedelta(dask.config.get(SETTING, None) or PATIENCE)
        self.well, self.looked, self.state = time.monotonic(), 0.0, ""
        self.there: frozenset[str] = frozenset()  # addresses of the workers
        self.look()

    def everywhere(self, call: Callable[[], object]) -> list[Any]:
        """Submit a call to every worker and return the tasks; waits only until there is a worker."""
        try:
            first = self._answer(self.client.submit, call, pure=False)  # adaptive clusters start workers only for tasks
            while not self.look(again=True):
                time.sleep(10 * TICK)
            how = {"pure": False, "allow_other_workers": True}
            addresses = self._answer(self.client.ncores)
            return [first, *(self._answer(self.client.submit, call, workers=[one], **how) for one in addresses)]
        except _Lost as error:
            raise self._gone(f"workers that answer, but they were lost ({error}). Pass a new client") from error

    def threads(self) -> int:
        """Number of tasks that can run at the same time."""
        try:
            return sum(self._answer(self.client.ncores).values())
        except _Lost:  # `run` raises the error
            return 0

    def run(
        self, work: Callable[[Any, Task], Result], shared: Any, tasks: Sequence[Task]
    ) -> Iterator[tuple[Task, Result]]:
        """Yield every task with ``work(shared, task)``, in any order."""
        left, losses = dict(enumerate(tasks)), 0
        while left:
            before = len(left)
            try:
                for number, result in self._round(work, shared, left):
                    yield left.pop(number), result
            except _Lost as error:
                losses = losses + 1 if len(left) == before else 1
                if losses == LOSSES:
                    raise self._gone(
                        f"workers that stay alive, but all data sent to them was lost {losses} times in a row "
                        f"({error}). {SHORT_OF_MEMORY}"
                    ) from error

    def _round(
        self, work: Callable[[Any, Task], Result], shared: Any, tasks: dict[int, Task]
    ) -> Iterator[tuple[int, Result]]:
        """Yield results until all tasks are done, or the data sent to the workers is lost."""
        while not self.look(again=True):
            time.sleep(10 * TICK)
        # Sent to one worker; the others fetch it from there, or from each other.
        sent, waiting = self._answer(self.client.scatter, shared, hash=False), dict[Any, int]()
        try:
            for number, task in tasks.items():
                waiting[self._answer(self.client.submit, work, sent, task, pure=False)] = number
            while waiting:
                ended = [future for future in waiting if future.status != "pending"]
                for future in ended:
                    try:
                        result = self._result(future)
                    except _Lost:
                        if future.status == "pending":  # its worker died, and Dask computes it again
                            continue
                        raise
                    yield waiting.pop(future), result
                if not ended:
                    time.sleep(TICK)
                    self.look()
        finally:
            self._forget([sent, *waiting])

    def _result(self, future: Any) -> Any:
        from distributed.scheduler import KilledWorker

        if future.status != "error":
            return self._answer(future.result)
        error = self._answer(future.exception)
        if isinstance(error, MemoryError | ValueError):  # raised by this package: they name an argument
            raise error
        if isinstance(error, KilledWorker):
            needs = f"workers that stay alive, but several died on the same genes. {SHORT_OF_MEMORY}"
        else:
            needs = (
                f"workers that can do this work, but one failed: {type(error).__name__}: {error}. They need this "
                "version of hadmst_sc, and write access to the store"
            )
        raise self._gone(needs) from error

    def _answer(self, call: Callable[..., Result], *given: Any, **named: Any) -> Result:
        """Result of a client's call, which may itself never return if the client is closed or a worker dies."""
        answer, there = _asked(call, *given, **named), self.there
        while not answer.done():
            gone = bool(there - self.there)
            wait_until([answer], LOOK)
            if not answer.done():
                self.look()
                if gone:
                    raise _Lost("a worker died")
        try:
            return answer.result()
        except Exception as error:
            raise _Lost(f"{type(error).__name__}: {error}") from error

    def look(self, *, again: bool = False) -> bool:
        """True if a worker is there, by the last check or a new one (``again``); an error if none was for too long."""
        if self.client.status in ("closing", "closed"):
            raise self._gone("an open connection to its cluster, but it was closed or lost. Pass a new client")
        now = time.monotonic()
        if again or now - self.looked >= LOOK:
            self.looked, self.state = now, self._state()
        if not self.state:
            self.well = now
        elif now - self.well >= self.patience:
            raise self._gone(
                f"a worker that takes tasks, but for {self.patience:g} s {self.state}. Start workers and wait for them "
                f"with `client.wait_for_workers(1)`, or wait longer with `dask.config.set({{{SETTING!r}: '10 min'}})`"
            )
        return not self.state

    def _state(self) -> str:
        """The problem of the workers in words; empty if one takes tasks or computes."""
        answer = _asked(lambda: self.client.sync(self.client.scheduler.identity))
        wait_until([answer], LOOK)
        if self.client.status != "running" or not answer.done() or answer.exception() is not None:
            return "its scheduler did not answer"
        self.there, workers = frozenset(answer.result()["workers"]), answer.result()["workers"].values()
        computing = (one["metrics"].get("task_counts", {}).get("executing", 0) for one in workers)
        if any(one["status"] == "running" or n for one, n in zip(workers, computing, strict=True)):
            return ""
        return f"its {len(workers)} workers were paused, short of memory" if workers else "it had none"

    def _forget(self, futures: list[Any]) -> None:
        """Cancel these tasks, so that the scheduler computes and keeps nothing more for this run."""
        if self.client.status == "running":
            with suppress(Exception):
                wait_until([_asked(self.client.cancel, futures)], LOOK)

    def _gone(self, needs: str) -> RuntimeError:
        kept = self.into is not None and bool(self.into.finished)
        return RuntimeError(f"`client` needs {needs}. {HERE}{KEPT if kept else ''}")


def _asked(call: Callable[..., Result], *given: Any, **named: Any) -> Future[Result]:
    """Make a call in a daemon thread, which the process need not wait for."""
    answer: Future[Result] = Future()

    def ask() -> None:
        try:
            answer.set_result(call(*given, **named))
        except BaseException as error:  # noqa: BLE001 - passed to the caller
            answer.set_exception(error)

    Thread(target=ask, daemon=True, name="hadmst-sc asks Dask").start()
    return answer
