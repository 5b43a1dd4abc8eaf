"""The error in log space, and what of it is Jensen's inequality: ``python benchmarks/log_space.py``.

Maps are expected counts. The RMSE of the benchmark compares logarithms, and the logarithm of an expectation is above
the expectation of the logarithm, most of all where a bin holds less than one count. So a map that is right loses there
to one that is too low. Here the maps of the same methods are compared by what log1p of the counts is expected to be: if
counts scatter as counting noise alone makes them, for every method, and if they also scatter as the standard deviation
of ours says. Truth: the half of the molecules that no spot has seen, in single bins.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import plan
import records
import scores
from cases.case import Case
from cases.cells import pseudo_spots, where_known
from cases.registered import registered
from frame import Measurement, Record, Row, grouped, rounded, shown
from methods import method
from pairs import paired
from plan import REGISTERED

from hadmst_sc import metrics

# The regressions with the least RMSE in the task `hr_sim`, and one that knows no image.
RIVALS = ("gradient boosting, log, soft spread", "gradient boosting, soft spread", "kriging, log, soft")
OURS = ("ours, closed form", "ours")
PLAIN, POISSON, LAW = "log of the expectation", "expected log, counting noise", "expected log, ours' spread too"
ABOUT = str(__doc__).split("\n\n", 1)[1].strip()
STEPS = np.linspace(-30.0, 4.0, 120)  # of the integral over t, in logarithms; it is then exact to 1e-6


def expected_log1p(mean: np.ndarray, std: np.ndarray | None = None) -> np.ndarray:
    """Expectation of log1p of counts, whose rate is ``mean`` or Gamma distributed with that mean and ``std``.

    log(1 + n) is the integral of exp(-t) (1 - exp(-n t)) / t over all t > 0, so only the expectation of exp(-n t) is
    needed: that of a Poisson or of a negative binomial distribution.
    """
    found, step = np.zeros(mean.shape), STEPS[1] - STEPS[0]
    shape = None if std is None else mean**2 / np.maximum(std, 1e-6 * np.maximum(mean, 1e-6)) ** 2
    for t in np.exp(STEPS):
        lost = -np.expm1(-t) * mean
        exponent = -lost if shape is None else -shape * np.log1p(lost / np.maximum(shape, 1e-12))
        found -= np.exp(-t) * np.expm1(exponent) * step
    return found


def rows_of(of_set: Record, options: Record) -> Iterator[Row]:
    """RMSE of every method of one set, and ours minus the best rival by the same rule."""
    has_image = of_set.get("also") != []
    obs, truth, cells = pseudo_spots(options["section"], options["n_genes"], options["bin_um"], options["pitch_um"])
    window = where_known(obs, cells)
    counts, everywhere, places = truth[:, window].astype(float), np.ones(int(window.sum()), bool), np.argwhere(window)
    moved = registered(Case(obs, (obs,), lambda _: {}), True).given[0] if has_image else obs
    weights = str(plan.weights_path(of_set["weights"]))
    kept: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}
    for name in (*RIVALS, *OURS):
        given = obs if name in OURS else moved
        found = method(name, weights)(given)
        mean = np.asarray(found.mean)[:, window].astype(float)
        logs = {PLAIN: np.log1p(mean), POISSON: expected_log1p(mean)}
        if found.std is not None:
            logs[LAW] = expected_log1p(mean, np.asarray(found.std)[:, window].astype(float))
        for rule, log in logs.items():
            maps = np.expm1(log)
            kept[name, rule] = metrics.rmse(maps, counts, everywhere), scores.resampled(maps, counts, places)["rmse"]
            row = {"set": of_set["name"], "genes": len(counts), "bin_um": options["bin_um"], "rule": rule}
            shown_name = name + REGISTERED * (given is not obs)
            yield row | {"method": shown_name} | rounded({"rmse": kept[name, rule][0].mean()}, 4)
    for rule in (PLAIN, POISSON, LAW):
        theirs = {name: kept[name, PLAIN if rule == PLAIN else POISSON] for name in RIVALS}
        best = min(theirs, key=lambda name: theirs[name][0].mean())
        for name in OURS:
            mine = kept[name, rule]
            drawn = {"": mine[1]}, {"": theirs[best][1]}
            one = paired({"": mine[0]}, {"": theirs[best][0]}, drawn, len(obs.spots))
            assert one is not None
            row = {"set": of_set["name"], "rule": rule, "method": name, "minus": best, "over": one.over}
            yield row | rounded({"difference": one.mean, "low": one.low, "high": one.high}, 4)


def measure(options: argparse.Namespace) -> Record:
    declared = plan.load()["tasks"]["hr_sim"]
    sets = [one for one in declared["sets"] if not options.sets or one["name"] in options.sets]
    defaults = declared["options"] | {"pitch_um": 100.0}
    return {"rows": shown(row for one in sets for row in rows_of(one, defaults | one["options"]))}


def render(found: Record) -> str:
    """The page."""
    tables = []
    for (name,), rows in grouped(found["rows"], "set").items():
        scored = [row for row in rows if "rmse" in row]
        by = {(row["method"], row["rule"]): f"{row['rmse']:.3f}" for row in scored}
        names = dict.fromkeys(row["method"] for row in scored)
        cells = [[one, *(by.get((one, rule), "–") for rule in (PLAIN, POISSON, LAW))] for one in names]
        differences = [
            [row["rule"], f"{row['method']} − {row['minus']}", _interval(row), row["over"]]
            for row in rows
            if "difference" in row
        ]
        tables += [
            f"## {name}, {scored[0]['genes']} genes, {scored[0]['bin_um']:g} µm",
            records.table(["RMSE (s.d.)", PLAIN, POISSON, LAW], cells),
            records.table(["by", "ours − best rival", "difference, 95 % interval", "over"], differences),
        ]
    return records.page(found, "# The error in log space", ABOUT, *tables)


def _interval(row: Row) -> str:
    return f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"


LOG_SPACE = Measurement("log_space", __doc__, measure, render, weights=None)

if __name__ == "__main__":
    LOG_SPACE.main()
