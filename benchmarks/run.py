"""Every number of this project: ``hadmst-sc benchmark``, or ``python benchmarks/run.py``.

Runs the cells that ``benchmark.toml`` declares, each in a fresh process, then the other measurements, and writes the
report. A cell that is done is not done again: stop it at any time, and start it again with the same command.
"""

from __future__ import annotations

import os

# Before numpy and torch: cells run side by side, one core each, whatever the shell has set. With two threads each,
# those of scikit-learn's boosting wait for one another without end.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import argparse
import json
import multiprocessing
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import connection
from pathlib import Path
from typing import Any

import numpy as np
import plan
import records
from plan import Cell
from tables import SAME, TURNED

from hadmst_sc.section.errors import ContractError

PRELOADED = ["hadmst_sc.tl", "sklearn.ensemble", "spatialdata", "joblib", "torch"]  # what takes seconds to import
DIGITS = 4
LARGE = 5e8  # bytes of maps
AsGiven = dict[tuple[str, ...], dict[str, dict[str, Any]]]
FINGERPRINT = "fingerprint"  # in place of a method: what it would be given, and what a fixed map scores


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", choices=plan.PROFILES, default="full")
    parser.add_argument("--tasks", nargs="+", help="of benchmark.toml (default: all)")
    parser.add_argument("--methods", nargs="+", metavar="METHOD")
    parser.add_argument("--sections", nargs="+", help="sections or sets")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="methods side by side")
    parser.add_argument("--time-limit", type=float, default=1800.0, help="seconds for one result")
    parser.add_argument("--fresh", action="store_true", help="do again what is done")
    parser.add_argument(
        "--refresh",
        action="store_true",
        help="keep stale results: where the code around a method has changed, if it gives the same section and a fixed "
        "map the same scores; where that of the method has, if its cheapest result of each task scores the same again",
    )
    parser.add_argument("--list", action="store_true", help="show what would be run, then stop")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/<profile>")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    declared = plan.load()
    folder = options.output or records.RESULTS / options.profile
    planned = plan.cells(declared, options.profile)
    wanted = [cell for cell in planned if _chosen(cell, options)]
    if not wanted:
        raise SystemExit(f"`--tasks`, `--methods` and `--sections` choose nothing. Tasks: {list(declared['tasks'])}.")
    stores = {task: Store(folder / f"{task}.jsonl") for task in declared["tasks"]}
    pending = [cell for cell in wanted if options.fresh or not stores[cell.task].has(cell)]
    _made()
    if options.refresh:
        refresh(pending, stores, options)
        pending = [cell for cell in pending if not stores[cell.task].has(cell)]
    n_done = len(wanted) - len(pending)
    n_stale = sum(stores[cell.task].state(cell) == "stale" for cell in pending)
    print(f"{len(wanted)} results, {n_done} of them done, {n_stale} stale", flush=True)
    if options.list:
        for cell in pending:
            print(f"{' · '.join(cell.key)} ({stores[cell.task].state(cell)})")
        for name, one in declared["measurements"].items():
            if "command" in one and not plan.up_to_date(name, one["command"]):
                print(f"measurement {name} (stale or missing)")
        return
    started = time.monotonic()
    firsts, done = pending, {}
    if not options.fresh:
        share(pending, planned, stores)
        pending = [cell for cell in pending if not stores[cell.task].has(cell)]
        first = {cell.identity: cell for cell in reversed(pending)}  # its twins get its result
        firsts, done = [cell for cell in pending if first[cell.identity] is cell], results_as_given(planned, stores)
    for number, (cell, found) in enumerate(run(firsts, options.workers, options.time_limit, done), 1):
        stores[cell.task].add(cell, found)
        outcome = found["reason"] if found["status"] != "done" else f"{found['cost']['seconds']:.1f} s"
        at = time.monotonic() - started
        print(f"{at:6.0f} s  {number}/{len(firsts)}  {' · '.join(cell.key)}: {outcome}", flush=True)
    share(pending, planned, stores)
    for task in {cell.task for cell in wanted}:  # another run may be writing the files of other tasks
        stores[task].tidy([cell.key for cell in planned])
    if options.profile == "full" and not (options.tasks or options.methods or options.sections):
        for alone in (False, True):
            named = [(name, one) for name, one in declared["measurements"].items() if "command" in one]
            commands = {name: one["command"] for name, one in named if one.get("alone", False) == alone}
            measure(commands, 1 if alone else options.workers, fresh=options.fresh)
    import report

    report.main(["--profile", options.profile, "--results", str(folder)])


def _chosen(cell: Cell, options: argparse.Namespace) -> bool:
    return (
        (not options.tasks or cell.task in options.tasks)
        and (not options.methods or cell.method in options.methods)
        and (not options.sections or cell.section in options.sections or cell.group in options.sections)
    )


# --- one cell ---------------------------------------------------------------------------------------------------------


class _Sections:
    """The section of some cells, as it is and as registered, read once for all of them."""

    def __init__(self) -> None:
        self._built: dict[bool, tuple[Any, str]] = {}

    def of(self, cell: Cell) -> tuple[Any, str]:
        """Case of a cell, and its fingerprint."""
        import cases
        from cases.case import disturbed
        from cases.fingerprint import fingerprint
        from cases.registered import registered

        if cell.registered not in self._built:
            if cell.registered:
                case = registered(self.of(replace(cell, method="as it is"))[0], cell.align)
            else:
                case = cases.CASES[cell.case](**cell.options)
                case = case if cell.disturbance is None else disturbed(case, *cell.disturbance)
            self._built[cell.registered] = case, fingerprint(case)
        return self._built[cell.registered]


def measure_cell(cell: Cell, sections: _Sections) -> dict[str, Any]:
    """Its scores and its cost; exceptions are results too."""
    import methods
    import peers
    from rivals import section

    used = _cpu_seconds()
    try:
        case, same = sections.of(cell)
        if cell.bare == FINGERPRINT:
            return {"status": "done", "fingerprint": same, "cost": {"seconds": 0.0}}
        _forget_peak()
        used = _cpu_seconds()
        if cell.reference:
            found, seconds, memory = case.references[cell.method](), 0.0, _peak_mb(of_children=False)
        else:
            predict = methods.method(cell.method, str(plan.weights_path(cell.weights)), cell.align)
            with tempfile.TemporaryDirectory(prefix="hadmst-benchmark-") as folder:
                predicted = [_set_aside(predict(obs), Path(folder) / str(k)) for k, obs in enumerate(case.given)]
                seconds = _cpu_seconds() - used + section.saved_seconds
                memory = _peak_mb(of_children=cell.bare in peers.PEERS)
                for prediction in predicted:
                    if not all(np.isfinite(one).all() for one in prediction.mean):
                        raise ValueError("the maps are not finite")
                found = case.score(predicted)
        if not cell.few:  # its interval is over sections
            for of_scale in found.values():
                of_scale.pop("resampled", None)
    except Exception as error:  # noqa: BLE001 - whatever a method dies of is its result
        reason = f"{type(error).__name__}: {str(error).strip()}"[:600]
        refused = isinstance(error, ContractError) and cell.method == TURNED
        status = "refused" if refused else "failed"
        return {"status": status, "reason": reason, "cost": {"seconds": round(_cpu_seconds() - used, 2)}}
    cost = {"seconds": round(seconds, 2), "memory_mb": memory}
    return {"status": "done", "about": case.about(), "scores": _plain(found), "cost": cost, "fingerprint": same}


def _set_aside(found: Any, path: Path) -> Any:
    """A prediction whose maps, if they are large, are on disk: those of four folds may be more than the memory."""
    if found.mean.nbytes < LARGE:
        return found
    found.mean.tofile(path)
    maps = np.memmap(path, found.mean.dtype, "r", shape=found.mean.shape)
    return replace(found, mean=maps, std=None)  # which no case scores


def _cpu_seconds() -> float:
    """Processor time of this process and of those that it started: what else the machine does must not count."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in both)


def _forget_peak() -> None:
    """Let what reading the section took not count (Linux; elsewhere it does)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mb(*, of_children: bool) -> int:
    """Peak resident memory of this process, or of the largest of those that it started."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    if of_children:
        return round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit)
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return round(int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**10)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)


def _plain(values: Any) -> Any:
    """Four decimals; ``None`` where a score is infinite, as JSON has no infinity."""
    if isinstance(values, dict):
        return {name: _plain(value) for name, value in values.items()}
    if isinstance(values, list | np.ndarray):
        return [_plain(value) for value in values]
    return round(float(values), DIGITS) if np.isfinite(values) else None


# --- many cells -------------------------------------------------------------------------------------------------------


@dataclass
class _Host:
    """A process that reads one section, and starts one process for each of its cells."""

    cells: list[Cell]
    process: Any
    results: connection.Connection
    shared: Path
    done: int = 0


def run(
    cells: Sequence[Cell], workers: int, time_limit: float, done: AsGiven | None = None
) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Each cell in a process of its own, so that memory is its own and a crash is one result and no more.

    Cells of one section come from one host, which has read it; ``workers`` hosts run side by side. ``done`` are results
    of rivals on the section as given: where registration changes nothing, they are those on the section as registered.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    unavailable = _unavailable(cells)
    waiting: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        if reason := unavailable(cell):
            yield cell, {"status": "skipped", "reason": reason, "cost": {"seconds": 0.0}}
        else:
            waiting.setdefault(cell.place, []).append(cell)
    hosts: list[_Host] = []
    with tempfile.TemporaryDirectory(prefix="hadmst-benchmark-") as scratch:
        try:
            while waiting or hosts:
                while waiting and len(hosts) < workers:
                    of_section = waiting.pop(next(iter(waiting)))
                    shared = Path(scratch) / str(len(waiting))
                    mine, theirs = multiprocessing.Pipe(duplex=False)
                    results = dict((done or {}).get(of_section[0].place, {}))
                    process = context.Process(target=_host, args=(of_section, theirs, shared, time_limit, results))
                    process.start()
                    theirs.close()
                    hosts.append(_Host(of_section, process, mine, shared))
                for ready in connection.wait([host.results for host in hosts]):
                    host = next(host for host in hosts if host.results is ready)
                    try:
                        found = host.results.recv()
                    except EOFError:  # it has ended, after its last cell or too early
                        hosts.remove(host)
                        host.process.join()
                        shutil.rmtree(host.shared, ignore_errors=True)
                        reason = f"the process that reads its section ended with {host.process.exitcode}"
                        for cell in host.cells[host.done :]:
                            yield cell, {"status": "failed", "reason": reason, "cost": {"seconds": 0.0}}
                        continue
                    host.done += 1
                    yield host.cells[host.done - 1], found
        finally:
            for host in hosts:
                host.process.terminate()
            for host in hosts:
                host.process.join()


def _host(
    cells: Sequence[Cell], results: connection.Connection, shared: Path, time_limit: float, as_given: dict[str, Any]
) -> None:
    """Send the result of each cell of one section, in their order."""
    _end_what_was_started()
    os.environ["HADMST_BENCHMARK_CACHE"] = str(shared)  # see rivals/section.py
    sections = _Sections()
    shared.mkdir(parents=True, exist_ok=True)
    for cell in cells:
        unmoved = False
        with suppress(Exception):  # the cell itself tells what it died of
            _, same = sections.of(cell)
            unmoved = cell.registered and same == sections.of(replace(cell, method=cell.bare))[1]
        found = as_given.get(cell.bare) if unmoved else None
        found = found or _in_a_process(cell, shared / "result.json", sections, time_limit)
        if found["status"] == "done" and not cell.registered:
            as_given[cell.method] = found
        results.send(found)


def _in_a_process(cell: Cell, target: Path, sections: _Sections, time_limit: float) -> dict[str, Any]:
    """Result of a cell; its process has what this one has read."""
    target.unlink(missing_ok=True)
    process = multiprocessing.get_context("fork").Process(target=_into_file, args=(cell, target, sections))
    process.start()
    try:
        process.join(time_limit)
        in_time = not process.is_alive()
    finally:
        process.terminate()
        process.join()
    if not in_time:
        return {"status": "failed", "reason": f"not done after {time_limit:g} s", "cost": {"seconds": time_limit}}
    if target.exists():
        return dict(json.loads(target.read_text()))
    return {"status": "failed", "reason": f"its process ended with {process.exitcode}", "cost": {"seconds": 0.0}}


def _into_file(cell: Cell, target: Path, sections: _Sections) -> None:
    _end_what_was_started()
    target.write_text(json.dumps(measure_cell(cell, sections), allow_nan=False))


def _end_what_was_started() -> None:
    """Let what a process has started end with it: by default a peer would go on for hours."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))


def results_as_given(planned: Sequence[Cell], stores: dict[str, Store]) -> AsGiven:
    """Results of rivals on sections as given: from the place of a cell to the method to the result."""
    found: AsGiven = {}
    for cell in planned:
        if not cell.ours and not cell.registered and not cell.reference and stores[cell.task].has(cell):
            found.setdefault(cell.place, {})[cell.method] = stores[cell.task].found(cell)
    return found


def share(pending: Sequence[Cell], planned: Sequence[Cell], stores: dict[str, Store]) -> None:
    """Give cells the result of a twin: the same method on the same section, declared in two tasks."""
    wanted = {cell.identity for cell in pending}
    twins = {cell.identity: cell for cell in planned if cell.identity in wanted and stores[cell.task].has(cell)}
    for cell in pending:
        twin = twins.get(cell.identity)
        if twin is not None and not stores[cell.task].has(cell):
            store = stores[twin.task]
            stores[cell.task].add(cell, store.found(twin), store.results[twin.key]["made"])


def refresh(stale: Sequence[Cell], stores: dict[str, Store], options: argparse.Namespace) -> None:
    """Keep results of other code, where the code of today gives the same numbers.

    Where the code around a method has changed, today's has to give it the same section, and a fixed map the same
    scores. Where the code of the method has changed, its cheapest cell of each task has to score the same again: a
    change that must not move any number, such as a faster way to the same maps, need not cost a run of everything.
    """
    changed = [
        (cell, cell.differs_in(stores[cell.task].results[cell.key]["settings"]))
        for cell in stale
        if stores[cell.task].state(cell) == "stale" and not cell.reference
    ]
    kept = [(cell, parts) for cell, parts in changed if "declared" not in parts]
    for part, that_hold in (("case", _cases_that_hold), ("method", _methods_that_hold)):
        doubted = [cell for cell, parts in kept if part in parts]
        held = {cell.key for cell in that_hold(doubted, stores, options)}
        kept = [(cell, parts) for cell, parts in kept if part not in parts or cell.key in held]
    for cell, parts in kept:
        why = {"kept": "its cheapest cell of the task was run again"} if "method" in parts else {}
        stores[cell.task].keep(cell, **why)


def _cases_that_hold(cells: Sequence[Cell], stores: dict[str, Store], options: argparse.Namespace) -> Iterator[Cell]:
    of_places: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        of_places.setdefault((*cell.key[:3], str(cell.registered)), []).append(cell)
    firsts = [replace(one, method=one.method.replace(one.bare, FINGERPRINT)) for one, *_ in of_places.values()]
    for cell, found in run(firsts, options.workers, options.time_limit):
        of_place = of_places[(*cell.key[:3], str(cell.registered))]
        mark = found.get("fingerprint")  # none where the run failed, nor has a method that refused its section one
        same = [one for one in of_place if mark and stores[one.task].results[one.key].get("fingerprint") == mark]
        yield from same
        print(f"{' · '.join(cell.key[:3])}: {len(same)} of {len(of_place)} results still hold", flush=True)


def _methods_that_hold(cells: Sequence[Cell], stores: dict[str, Store], options: argparse.Namespace) -> Iterator[Cell]:
    of_sets: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        of_sets.setdefault((cell.task, cell.method), []).append(cell)
    cheapest = [
        min(of_set, key=lambda one: stores[one.task].found(one)["cost"]["seconds"]) for of_set in of_sets.values()
    ]
    for cell, found in run(cheapest, options.workers, options.time_limit):
        of_set = of_sets[cell.task, cell.method]
        holds = found["status"] == "done" and _alike(found["scores"], stores[cell.task].found(cell)["scores"])
        yield from of_set if holds else []
        n = len(of_set) if holds else 0
        print(f"{cell.task} · {cell.method}: {n} of {len(of_set)} results still hold", flush=True)


def _alike(scores: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    """Tell if the scores that tables show, means over genes, differ by less than ``SAME``.

    Single genes may move more: on another machine the last digits of a sum differ, and trees then split elsewhere.
    """
    if scores.keys() != others.keys():
        return False
    pairs = [
        (np.asarray(scores[kind][name], float), np.asarray(others[kind][name], float))
        for kind in scores
        for name in {"pcc", "rmse", "deviance", "ari", "crps"} & scores[kind].keys() & others[kind].keys()
    ]
    return bool(pairs) and all(
        one.shape == other.shape and abs(np.nanmean(one) - np.nanmean(other)) < SAME for one, other in pairs
    )


def _unavailable(cells: Sequence[Cell]) -> Any:
    import peers

    reasons = {
        name: peers.available(peer) for name, peer in peers.PEERS.items() if any(cell.bare == name for cell in cells)
    }
    return lambda cell: reasons.get(cell.bare) or plan.missing_input(cell)


# --- files ------------------------------------------------------------------------------------------------------------


@cache
def _made() -> dict[str, Any]:
    """Commit, machine and versions of this run, found once: its own files would be uncommitted changes."""
    made = records.provenance(weights=None)
    return {name: made[name] for name in ("commit", "uncommitted_changes", "machine", "versions")}


class Store:
    """Results of one task: a line of JSON per section, and one per cell, added as they come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sections: dict[tuple[str, ...], dict[str, Any]] = {}
        self.results: dict[tuple[str, ...], dict[str, Any]] = {}
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                self._take(json.loads(line))
            except json.JSONDecodeError:
                continue  # the run was stopped while it wrote this line

    def _take(self, line: dict[str, Any]) -> None:
        if "method" in line:
            self.results[line["task"], line["section"], line["point"], line["method"]] = line
        else:
            self.sections[line["task"], line["section"], line["point"]] = line

    def has(self, cell: Cell) -> bool:
        """Tell if there is a result that still holds."""
        return self.state(cell) == "fresh"

    def state(self, cell: Cell) -> str:
        """What is known of the result of a cell, see :meth:`plan.Cell.state`."""
        return cell.state(self.results.get(cell.key))

    def found(self, cell: Cell) -> dict[str, Any]:
        """Result of a cell that is done, as :meth:`add` takes it."""
        line, about = self.results[cell.key], self.sections.get(cell.key[:3], {}).get("about")
        kept = ("status", "scores", "cost", "fingerprint", "reason")
        return {"about": about} | {name: line[name] for name in kept if name in line}

    def add(self, cell: Cell, found: dict[str, Any], made: dict[str, Any] | None = None) -> None:
        """Keep a result, on disk too; ``made`` is the provenance of a result of another run."""
        place = {"task": cell.task, "group": cell.group, "section": cell.section, "point": cell.point}
        about = found.pop("about", None)
        lines = []
        if about and self.sections.get(cell.key[:3], {}).get("about") != about:
            lines.append(place | {"about": about, "inputs": dict(cell.inputs)})
        if cell.ours:
            found["weights"] = {cell.weights: plan.weights_sha256(cell.weights)}
        lines.append(place | {"method": cell.method, "settings": cell.settings} | found | {"made": made or _made()})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            for line in lines:
                self._take(line)
                file.write(json.dumps(line, allow_nan=False, ensure_ascii=False) + "\n")

    def keep(self, cell: Cell, **why: str) -> None:
        """Let a result hold for the settings of today."""
        line = self.results[cell.key] | {"settings": cell.settings} | why
        with self.path.open("a") as file:
            self._take(line)
            file.write(json.dumps(line, allow_nan=False, ensure_ascii=False) + "\n")

    def tidy(self, order: Sequence[tuple[str, ...]]) -> None:
        """Write the file anew: in the order of the plan, each cell once, without what the plan no longer has."""
        known = [key for key in order if key in self.results]
        sections = dict.fromkeys(key[:3] for key in known)
        lines = [self.sections[key] for key in sections if key in self.sections] + [self.results[key] for key in known]
        fresh = self.path.with_suffix(".new")
        fresh.write_text("".join(json.dumps(line, allow_nan=False, ensure_ascii=False) + "\n" for line in lines))
        fresh.replace(self.path)


# --- the other measurements -------------------------------------------------------------------------------------------


def measure(scripts: dict[str, str], workers: int, *, fresh: bool) -> None:
    """Run scripts with tables of their own; one whose result is there, of this code and weights, is not run again.

    Side by side they have one core each; alone they have all, as their seconds are results.
    """
    one_core = workers > 1
    environment = {k: v for k, v in os.environ.items() if one_core or not k.endswith("_NUM_THREADS")}

    def run_script(name: str) -> None:
        if not fresh and plan.up_to_date(name, scripts[name]):
            print(f"{name}: done", flush=True)
            return
        print(f"{name}: {scripts[name]}", flush=True)
        subprocess.run([sys.executable, *shlex.split(scripts[name])], cwd=plan.ROOT, env=environment, check=True)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(run_script, scripts))


if __name__ == "__main__":
    main()
