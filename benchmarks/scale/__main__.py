"""Time and memory against the size of a section and the number of genes: ``hadmst-sc benchmark scale``.

Sections are the mouse brain, mirrored side by side; each run is a process of its own. Runs that the code of today has
made are kept: stop it, and start it again with the same command. Writes ``results/scale.json``, ``.md`` and ``.png``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import plan
import records
from frame import axes, parser
from once import in_own_process
from throughput import compiled, throughput, two_over_one

DECLARED = plan.load()["scale"]
RUNS: dict[str, str] = DECLARED["runs"]
PAIRS: dict[str, tuple[str, str]] = {name: tuple(pair) for name, pair in DECLARED["pairs"].items()}
CURVES: dict[str, tuple[str, list[str]]] = {name: (one["of"], one["runs"]) for name, one in DECLARED["curves"].items()}
FULL, EVERY = "full slide, 200 genes", "full slide, every gene, metagenes"
LARGEST, CELLS = "18,000 genes, metagenes", "full slide, 200 genes, 50,000 cells"
MEAN, TESLA = "200 genes, mean", "TESLA, 200 genes"  # TESLA has no uncertainty


def main(arguments: list[str] | None = None) -> None:
    options = parser("scale", __doc__).parse_args(arguments)
    if unknown := set(options.runs) - set(RUNS):
        raise SystemExit(f"`--runs` needs names of {list(RUNS)}, but has {sorted(unknown)}.")
    with tempfile.TemporaryDirectory(prefix="hadmst-scale-maps-") as scratch:
        measure(options, Path(scratch))


def measure(options: argparse.Namespace, scratch: Path) -> None:
    """The runs that are not done, each kept as it ends; maps that are compared go to ``scratch``."""
    target = options.output / "scale.json"
    found = records.read(target).get("runs", {})
    made = records.provenance(weights="default")
    kept = [] if options.fresh else [name for name, run in found.items() if run.get("code") == made["code"]]
    left = [name for name in options.runs or RUNS if name not in kept]
    network = throughput() | compiled() | {"two_over_one": two_over_one()} if left else {}
    for name in left:
        arguments_of_run = RUNS[name].split()
        pair = next((pair for pair in PAIRS.values() if name in pair), ())
        if pair:
            arguments_of_run += ["--maps", str(scratch / f"{name}.npy")]
        print(f"{name}: {RUNS[name]}", flush=True)
        try:
            run = in_own_process(arguments_of_run)
        except subprocess.CalledProcessError as error:
            run = {"failed": (error.stderr or "").strip().splitlines()[-1:]}
        found[name] = run | {"command": RUNS[name], "code": made["code"]}
        if pair and all((scratch / f"{each}.npy").exists() for each in pair):
            found[pair[1]]["largest_difference"] = difference(*(scratch / f"{each}.npy" for each in pair))
        ordered = {each: found[each] for each in RUNS if each in found}
        codes = {run.get("code") for run in ordered.values()}
        origin = made if codes == {made["code"]} else made | {"code": ""}  # runs of other code are left: not up to date
        record = {"provenance": origin, "throughput": network, "runs": ordered}
        record["growth"] = {curve: slope(ordered, *of) for curve, of in CURVES.items()}
        records.save("scale", record, render(record), options.output)
    if found:
        draw(found, options.output / "scale.png")


def difference(first: Path, second: Path) -> float:
    """Largest difference of maps over the largest value of the gene."""
    maps, others = (np.load(path, mmap_mode="r") for path in (first, second))
    return max(float(np.abs(a - b).max() / max(a.max(), 1e-9)) for a, b in zip(maps, others, strict=True))


def slope(found: dict[str, Any], of: str, names: list[str]) -> float | None:
    """Exponent of seconds as a power of genes or bins, by least squares; ``None`` for fewer than three runs."""
    runs = [found[name] for name in names if "seconds" in found.get(name, {})]
    if len(runs) < 3:
        return None
    return float(np.polyfit(np.log([run[of] for run in runs]), np.log([run["seconds"] for run in runs]), 1)[0])


def figures(record: dict[str, Any]) -> list[list[str]]:
    """Figures that are asked for beside those measured."""
    runs = {name: run for name, run in record["runs"].items() if "seconds" in run}
    rows = [["network against bare convolutions of its shapes", "≥ 60 %", f"{record['throughput']['share']:.0%}"]]
    if full := runs.get(FULL):
        rows.append([FULL, "≤ 40 s, ≤ 3 GB", f"{full['seconds']:.0f} s, {full['peak_gb']:.2f} GB"])
        if cells := runs.get(CELLS):
            rows.append([f"{CELLS}: time over that without", "≤ 1.3", f"{cells['seconds'] / full['seconds']:.2f}"])
        if every := runs.get(EVERY):
            ratio = every["seconds"] / full["seconds"]
            loss = f"deviance at held-out spots {every['metagene_loss']:+.1%}"
            rows.append([f"{every['genes']:,} genes by metagenes, over 200 one by one", "≤ 2", f"{ratio:.2f}; {loss}"])
    if most := runs.get(LARGEST):
        rows.append([LARGEST, "≤ 240 s", f"{most['seconds']:.0f} s, {most['peak_gb']:.2f} GB"])
    few, many = runs.get("200 genes, metagenes"), runs.get("2,000 genes, metagenes")
    if few and many:
        growth = many["peak_gb"] / few["peak_gb"] - 1
        rows.append(["peak memory from 200 to 2,000 genes", "≤ +10 %", f"{growth:+.0%}"])
    for curve, exponent in record["growth"].items():
        if exponent is not None:
            rows.append([f"exponent of time against {curve}", "≤ 1.05", f"{exponent:.2f}"])
    for genes, (one, two) in PAIRS.items():
        if one in runs and two in runs:
            gain = runs[one]["seconds"] / runs[two]["seconds"]
            apart = runs[two].get("largest_difference")
            same = "" if apart is None else f", maps differ by at most {apart:.0e}"
            rows.append([f"two Dask workers over one, {genes}", "≥ 1.7, equal results", f"{gain:.2f}{same}"])
    for name in (MEAN, FULL, EVERY):
        if TESLA in runs and name in runs:
            ratio = each(runs[TESLA]) / each(runs[name])
            rows.append([f"time of TESLA per gene and bin over that of: {name}", "≥ 13", f"{ratio:.1f}"])
    return rows


def each(run: dict[str, Any]) -> float:
    """Milliseconds per gene and 10,000 bins."""
    return 1e3 * run["seconds"] / run["genes"] / run["bins"] * 1e4


def render(record: dict[str, Any]) -> str:
    columns = ["run", "bins", "genes", "s", "peak GB", "in the network", "ms per gene and 10,000 bins"]
    rows = []
    for name, run in record["runs"].items():
        if "seconds" not in run:
            rows.append([name, f"failed: {run['failed']}", *[""] * 5])
            continue
        # Workers have clocks of their own, others no network of ours.
        apart = any(one in run["command"] for one in ("workers", "peer"))
        share = "" if apart else f"{run['network_seconds'] / run['seconds']:.0%}"
        cells = [f"{run['bins']:,}", f"{run['genes']:,}", f"{run['seconds']:.0f}", f"{run['peak_gb']:.2f}", share]
        rows.append([name, *cells, f"{each(run):.1f}"])
    network = record["throughput"]
    throughput = f"Network {network['network_gflops']:g} GFLOP/s, its convolutions alone {network['bare_gflops']:g}."
    if "compiled_s" in network:
        seconds = (network["eager_s"], network["compiled_s"])
        throughput += " An evaluation takes {:.3f} s, by `torch.compile` with frozen weights {:.3f} s.".format(*seconds)
    if "two_over_one" in network:
        throughput += f" Two processes of one thread do {network['two_over_one']:.2f} times what one does."
    return records.page(
        record,
        "# Scale: time and memory",
        "The mouse brain on 20 µm bins, backed, on the CPU; larger ones are mirrored copies.",
        records.table(["figure", "asked", "measured"], figures(record)),
        records.table(columns, rows),
        throughput,
        "![seconds against genes and bins](scale.png)",
    )


def draw(found: dict[str, Any], path: Path) -> None:
    """Seconds against what they should grow in proportion to."""
    from matplotlib.ticker import NullFormatter

    curves = {
        curve: (
            of,
            sorted((found[name][of], found[name]["seconds"]) for name in names if "seconds" in found.get(name, {})),
        )
        for curve, (of, names) in CURVES.items()
    }
    quantities = list(dict.fromkeys(of for of, points in curves.values() if points))
    if not quantities:
        return
    figure, drawn = axes(len(quantities), size=(4, 3.2))
    for axis, quantity in zip(drawn[0], quantities, strict=True):
        for curve, (of, points) in curves.items():
            if of == quantity and points:
                axis.loglog(*zip(*points, strict=True), "o-", label=curve)
        axis.xaxis.set_minor_formatter(NullFormatter())  # over less than a decade the labels would overlap
        axis.set(xlabel=quantity, ylabel="seconds")
        axis.legend(frameon=False)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
