"""Tables and figures from result files alone: ``hadmst-sc benchmark report``, or ``python benchmarks/report.py``.

Writes ``report.md``, whose sections ``benchmark.toml`` declares, one page per task, and pictures, beside the files of
the profile; of the full profile also the tables of the README. No number on them was typed.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import figures
import numpy as np
import plan
import records
import scores
from outcomes import Results, View
from pairs import LEAST_SECTIONS, LEAST_SPOTS, Difference, paired
from tables import BETTER, CLOSED_FORM, OURS, TITLES, TURNED, by_method, cell, interval, made, minus, number, present

SPREAD = ("pcc", "rmse")  # shown with ± s.d. over genes
LEGACY = ("legacy_rmse", "legacy_pcc", "legacy_ssim")
THIRDS = ("scarce", "middle", "abundant")
NO_HE = "ours, no H&E"
CONTROLS = (OURS, NO_HE, TURNED, "linear")
NOT_MEASURED = "not measured in this version"
WORDS = {-1: "lost", 0: "undecided", 1: "won"}
ENDS = f"all scores and scales: {' / '.join(WORDS.values())}"
README = Path(__file__).resolve().parents[1] / "README.md"
PAGES = "benchmarks/results/full"
# Sets on the README, one for each kind of evidence.
SHOWN = {
    ("holdout", "mouse brain"): "mouse brain, spots held out",
    ("hr_sim", "breast"): "breast cancer, spots made from Xenium",
    ("hr_real", "breast"): "breast cancer, next section as truth",
}
ADVERSARY = f"ours, samples{plan.TRAINED}"  # then with or without it, and the seed
PARTS = {
    "semantic distillation network": "ours, no student",
    "spatial alignment module: registration": "ours, no registration",
    "spatial alignment module: offsets in the network": "ours, no offsets",
    "channel-aware adversarial learner": ADVERSARY,
    "conditional diffusion model": CLOSED_FORM,
    "its context of components (added by us)": "ours, no metagene context",
    "gate (added by us)": "ours, no gate",
}
SCORES: dict[str, Callable[..., float]] = BETTER | {"ari": max}  # which is better, of every score with a verdict
OF_SAMPLES: dict[str, Callable[[float], float]] = {"crps": float, "power": lambda power: abs(power - 1)}  # 0 is best
DRAWS = ("covered", "covered, half as wide", "covered, twice as wide", "crps", "rank of std", "rank of mean", "power")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", choices=plan.PROFILES, default="full")
    parser.add_argument("--results", type=Path, help="folder of result files (default: benchmarks/results/<profile>)")
    options = parser.parse_args(arguments)
    folder = options.results or records.RESULTS / options.profile
    declared = plan.load()
    found = Results.read(folder, list(declared["tasks"]))
    if not found.cells:
        raise SystemExit(f"`--results` needs result files, but {folder} has none. Run `hadmst-sc benchmark` first.")
    for task in dict.fromkeys(one["task"] for one in found.cells):
        (folder / f"{task}.md").write_text(task_page(found, task, declared["tasks"][task]) + "\n")
    planned = plan.cells(declared, options.profile)
    summary = Summary(found, declared, figures.draw(found, folder), planned)
    page = summary.page(options.profile)
    (folder / "headline.md").write_text(summary.headline_page() + "\n")
    figures.headline(summary.one_screen, folder / "headline.png")
    (folder / "report.md").write_text(page + "\n")
    if folder == records.RESULTS / "full":
        README.write_text(summary.readme(README.read_text()))
    print(page)


# --- a page for each task ---------------------------------------------------------------------------------------------


def task_page(found: Results, task: str, declared: dict[str, Any]) -> str:
    """Every method on every set of one task: scores, thirds of abundance, and differences from ours."""
    parts = [f"# {declared['title']}"]
    for view in found.views(task):
        if view.point != plan.CLEAN and "sweep" not in declared:
            continue  # curves are on the summary
        about = found.about(view)
        n_genes = sum(len(section["genes"]) for section in about.values())
        spots = [section["n_spots"] for section in about.values()]
        size = f"{min(spots):,}" + (f" to {max(spots):,}" if max(spots) > min(spots) else "")
        scope = f"{len(about)} section(s) of {size} spots, {n_genes} (gene, section) pairs; mean ± s.d. over them."
        parts += [f"## {view.name}", scope, _overview(found, view)]
        if present(found, view, ("pcc",)):
            thirds = {name: _thirds(section["counts_per_spot"]) for name, section in about.items()}
            parts += ["By third of abundance, PCC / RMSE:", _by_label(found, view, thirds)]
            kinds = {name: section["kinds"] for name, section in about.items()}
            if {kind for own in kinds.values() for kind in own} != {"real"}:
                parts += ["By what drives the gene, PCC / RMSE:", _by_label(found, view, kinds)]
            parts += [
                "Ours minus each, with 95 % intervals over what the last column names:",
                _differences(found, view),
            ]
    return "\n\n".join([*parts, features_of(found.methods()), made(found, task)])


def features_of(methods: Iterable[str]) -> str:
    """A line that says what published methods in a table know of the image."""
    known = plan.load()["features"]
    named = [f"{name}: {what}" for name, what in known.items() if name in methods or name == "all others"]
    return f"Image features. {'. '.join(named)}."


def _overview(found: Results, view: View) -> str:
    def content(method: str, metric: str) -> str:
        if metric in TITLES:
            return cell(found.scores(view, method, metric), spread=metric in SPREAD)
        seconds, memory = (found.costs(view, method, name) for name in ("seconds", "memory_mb"))
        if not memory or not any(seconds):
            return "–"
        return f"{np.mean(seconds):.1f}" if metric == "seconds" else f"{max(memory):.0f}"

    columns = {TITLES[metric]: metric for metric in present(found, view, TITLES)}
    return by_method(found.methods(view), columns | {"seconds": "seconds", "MB": "memory_mb"}, content)


def _thirds(counts_per_spot: Sequence[float]) -> list[str]:
    return [THIRDS[third] for third in scores.tertiles(counts_per_spot)]


def _by_label(found: Results, view: View, labels: dict[str, Sequence[str]]) -> str:
    def content(method: str, label: str) -> str:
        of_label = [
            {name: one[np.array(labels[name]) == label] for name, one in found.scores(view, method, metric).items()}
            for metric in ("pcc", "rmse")
        ]
        return " / ".join(map(cell, of_label))

    known = {str(label) for own in labels.values() for label in own}
    names = [third for third in THIRDS if third in known] or sorted(known)
    return by_method(found.methods(view), {label: label for label in names}, content)


def _differences(found: Results, view: View) -> str:
    def content(method: str, metric: str) -> str:
        difference = minus(found, view, method, "pcc" if metric == "over" else metric)
        return difference.over if difference and metric == "over" else interval(difference)

    columns = {"PCC": "pcc", "RMSE": "rmse", "deviance": "deviance", "over": "over"}
    return by_method([method for method in found.methods(view) if method != OURS], columns, content)


def _median(values: Mapping[str, np.ndarray]) -> str:
    """Median over genes, mean over sections."""
    return f"{np.mean([np.median(of_genes) for of_genes in values.values()]):.2f}" if values else "–"


# --- the summary ------------------------------------------------------------------------------------------------------


def sign(over: Difference | None, metric: str) -> int:
    """1 where ours is better by a score, -1 where it is worse, 0 where that is undecided."""
    return over.sign * (1 if SCORES[metric] is max else -1) if over else 0


def _effects(signs_of_sets: Iterable[set[int]]) -> str:
    """Number of sets on which a part helps / has no clear effect / harms, from the signs of all scores of each set.

    It has no clear effect where no interval is on one side of zero, and where two scores disagree.
    """
    signs = list(signs_of_sets)
    helps, harms = (sum(end in of_set and -end not in of_set for of_set in signs) for end in (1, -1))
    return f"{helps} / {len(signs) - helps - harms} / {harms}"


def _ended(signs: Counter[int]) -> str:
    """Numbers of comparisons lost / undecided / won."""
    return " / ".join(str(signs[sign]) for sign in WORDS)


class Verdict(NamedTuple):
    """Ours against the best of the others, on one set by one score."""

    view: View
    metric: str
    rival: str  # the best by this very score on this very set: with hindsight, which no user has
    over_rival: Difference
    over_closed_form: Difference | None

    @property
    def sign(self) -> int:
        """1 where ours is better, -1 where it is worse, 0 where the interval holds zero or there is none."""
        return sign(self.over_rival, self.metric)

    @property
    def sign_over_closed_form(self) -> int:
        """The same against our closed form."""
        return sign(self.over_closed_form, self.metric)


@dataclass(frozen=True)
class Summary:
    """The page that shows losses, wins and controls; each section's table is the method that it names."""

    found: Results
    declared: dict[str, Any]
    pictures: dict[str, str]
    planned: Sequence[plan.Cell] = ()

    def page(self, profile: str) -> str:
        """All sections; those that have no results are left out."""
        command = "hadmst-sc benchmark" + (f" --profile {profile}" if profile != "full" else "")
        origin = f"Written by `{command}` from the result files beside this page. {made(self.found)}"
        parts = [self.freshness(), f"# Benchmark, {profile} profile", origin]
        for section in self.declared["report"]:
            if table := getattr(self, section["table"])():
                parts += [f"## {section['title']}", section.get("text", "").strip(), table]
        return "\n\n".join(part for part in parts if part)

    def freshness(self) -> str:
        """First line of the page: what of the plan is missing, and what was made by other code or settings."""
        known = {(c["task"], c["section"], c["point"], c["method"]): c for c in self.found.cells}
        states = [(cell, cell.state(known.get(cell.key))) for cell in self.planned]
        stale = [cell for cell, state in states if state == "stale"]
        missing = [cell for cell, state in states if state not in ("fresh", "stale")]
        old = [
            name
            for name, one in self.declared["measurements"].items()
            if self.planned and not plan.up_to_date(name, one.get("command") or one["script"])
        ]
        told = []
        if missing or stale:
            tasks = ", ".join(dict.fromkeys(cell.task for cell in [*stale, *missing]))
            told.append(
                f"**Of {len(self.planned):,} results {len(stale):,} are stale (made by other code or settings) and "
                f"{len(missing):,} are missing or failed; in: {tasks}.**"
            )
        if old:
            told.append(f"**Measurements made by other code: {', '.join(old)}.**")
        return " ".join(told)

    @cached_property
    def clean(self) -> list[View]:
        """Undisturbed sections with maps to score, but for those of switches."""
        apart = ("domains", "robustness", "parts", "draws", "panel")
        return [view for view in self.found.views() if view.point == plan.CLEAN and view.task not in apart]

    @property
    def core(self) -> list[str]:
        """Methods of the headline: ours, and every rival on the section as it is."""
        kinds = self.declared["methods"]
        return [*kinds["ours"], *kinds["simple"], *kinds["rivals"], *kinds["network"], *kinds["head"], *kinds["peers"]]

    def others(self, view: View) -> list[str]:
        """Rivals that have scores here, on the section as given and as registered by ours."""
        references = {name for task in self.declared["tasks"].values() for name in task.get("references", [])}
        return [name for name in self.found.methods(view) if not name.startswith(OURS) and name not in references]

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """On undisturbed sections, panels and domains."""
        return self.verdicts_of([*self.clean, *self.found.views("domains"), *self.found.views("panel")])

    @cached_property
    def disturbed(self) -> list[Verdict]:
        """On disturbed sections: counted apart, as three rivals are run there."""
        return self.verdicts_of(view for view in self.found.views("robustness") if view.point != plan.CLEAN)

    def verdicts_of(self, views: Iterable[View]) -> list[Verdict]:
        """Losses first, then what is undecided, then wins."""
        found = []
        for view in views:
            for metric, better in SCORES.items():
                means = {name: self.found.mean(view, name, metric) for name in self.others(view)}
                means = {name: mean for name, mean in means.items() if np.isfinite(mean)}
                if not means:
                    continue
                rival = better(means, key=means.__getitem__)
                over = minus(self.found, view, rival, metric)
                if over is not None:
                    found.append(Verdict(view, metric, rival, over, minus(self.found, view, CLOSED_FORM, metric)))
        return sorted(found, key=lambda one: one.sign)

    def against_the_best(self) -> str:
        """Counts by task, then a row per set and score."""
        total = self._ends_by_task(self.verdicts)
        rows = [
            [
                WORDS[one.sign],
                one.view.task,
                one.view.name,
                TITLES[one.metric],
                f"{self.found.mean(one.view, OURS, one.metric):.3f}",
                f"{one.rival} {self.found.mean(one.view, one.rival, one.metric):.3f}",
                interval(one.over_rival),
                interval(one.over_closed_form),
                one.over_rival.over + self._donors(one.view),
            ]
            for one in self.verdicts
        ]
        head = ["", "task", "set", "score", "ours", "best rival", "ours minus it", "minus our closed form", "over"]
        words = [*WORDS.values(), *(f"{word}, closed form" for word in WORDS.values())]
        tables = [records.table(["task", *words], total), records.table(head, rows)]
        return "\n\n".join(tables) if rows else ""

    @staticmethod
    def _ends_by_task(verdicts: Sequence[Verdict]) -> list[list[str]]:
        """Task; lost, undecided and won against the best rival; the same against our closed form."""
        found = []
        for task in dict.fromkeys(one.view.task for one in verdicts):
            own = [one for one in verdicts if one.view.task == task]
            ends = Counter(one.sign for one in own), Counter(one.sign_over_closed_form for one in own)
            found.append([task, *(str(of[sign]) for of in ends for sign in WORDS)])
        return found

    def _donors(self, view: View) -> str:
        sets = {one["name"]: one for one in self.declared["tasks"][view.task]["sets"]}
        donors = sets.get(view.group, {}).get("donors")
        return f", donors: {donors}" if donors else ""

    @cached_property
    def one_screen(self) -> list[dict[str, Any]]:
        """Per task and set, at the finest scale: PCC of ours, closed form, best rival, published tools and ceiling.

        Sets with a loss by any score at any scale come first.
        """
        rows, seen = [], set()
        for one in (one for one in self.verdicts if one.metric == "pcc" and one.view in self.clean):
            place = one.view.task, one.view.group
            finest = next(view for view in self.clean if (view.task, view.group) == place)
            if one.view != finest or place in seen:
                continue
            seen.add(place)
            names = {"ours": OURS, "closed form": CLOSED_FORM, "best rival": one.rival}
            for peer in self.declared["methods"]["peers"]:
                values = {name: self.found.mean(finest, name, "pcc") for name in (peer, peer + plan.REGISTERED)}
                names[peer] = max(values, key=lambda name, of=values: np.nan_to_num(of[name], nan=-1.0))
            ceilings = (self.found.mean(finest, name, "pcc") for name in ("split-half ceiling", "true rate"))
            values = {column: self.found.mean(finest, name, "pcc") for column, name in names.items()}
            ends = Counter(other.sign for other in self.verdicts if (other.view.task, other.view.group) == place)
            values |= {"ceiling": max(ceilings, key=np.nan_to_num)}
            rows.append({"verdict": one, "values": values, "ends": ends})
        return sorted(rows, key=lambda row: -row["ends"][-1])

    def headline_page(self) -> str:
        """The one table that people read, losses first."""
        columns = list(self.one_screen[0]["values"]) if self.one_screen else []
        rows = [
            [
                f"{row['verdict'].view.task}: {row['verdict'].view.name}",
                *(number(value) for value in row["values"].values()),
                row["verdict"].rival,
                f"{WORDS[row['verdict'].sign]}, {interval(row['verdict'].over_rival)}",
                row["verdict"].over_rival.over + self._donors(row["verdict"].view),
                _ended(row["ends"]),
            ]
            for row in self.one_screen
        ]
        head = ["task: set", *columns, "which rival", "ours minus the best rival", "interval over", ENDS]
        others = [one for one in self.verdicts if one.view.task in ("domains", "panel")] + self.disturbed
        told = [f"{task} {' / '.join(ends[: len(WORDS)])}" for task, *ends in self._ends_by_task(others)]
        also = f"{' / '.join(WORDS.values()).capitalize()}, of other tasks: {'; '.join(told)}." if told else ""
        parts = [self.freshness(), records.table(head, rows), also, features_of(self.found.methods()), made(self.found)]
        return "\n\n".join(part for part in parts if part)

    def parts_of_the_method(self) -> str:
        """Each part switched off: change of the scores, and whether it is shown to help anywhere on real tissue."""
        rows = []
        for name in self.helps:
            for view in self.found.views("parts"):
                changes = {metric: minus(self.found, view, name, metric) for metric in BETTER}
                if changes["pcc"] is not None:
                    own = map(interval, changes.values())
                    rows.append([name, view.name, *own, changes["pcc"].over])
        if not rows:
            return ""
        shown = [[name, n] for name, n in self.helps.items()]
        return "\n\n".join(
            [
                records.table(["switch", "real sets on which the part helps / has no clear effect / harms"], shown),
                records.table(["switch", "set", *(TITLES[metric] for metric in BETTER), "over"], rows),
            ]
        )

    @cached_property
    def helps(self) -> dict[str, str]:
        """By switch: on how many real sets ours is better, or worse, without it switched."""
        views = self.found.views("parts")
        real = [view for view in views if not view.group.startswith("phantoms")]
        helps = {}
        for name in dict.fromkeys(method for view in views for method in self.found.methods(view) if method != OURS):
            asked = [view for view in real if name in self.found.methods(view)]
            helps[name] = _effects(
                {sign(minus(self.found, view, name, metric), metric) for metric in BETTER} for view in asked
            )
        return helps

    @property
    def helps_of_adversary(self) -> str:
        """On how many real sets samples are better, or worse, with it, in bins or blocks; empty if not measured."""
        signs: dict[str, set[int]] = {}
        for view in self.found.views("draws"):
            gains = [gain for metric in OF_SAMPLES if (gain := self.gain_by_adversary(view, metric)[0])]
            if gains and not view.group.startswith("phantoms"):
                signs.setdefault(view.group, set()).update(gain.sign for gain in gains)
        return _effects(signs.values()) if signs else ""

    def readme(self, page: str) -> str:
        """The README with its tables between their markers."""
        for name, block in (("numbers", self.numbers()), ("parts", self.state_of_parts())):
            start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
            before, _, rest = page.partition(start)
            page = before + start + block + "\n" + end + rest.partition(end)[2]
        return page

    def numbers(self) -> str:
        """A row for each kind of evidence, and the end of all comparisons."""
        found = {(row["verdict"].view.task, row["verdict"].view.group): row for row in self.one_screen}
        rows, n_rivals = [], []
        for place, text in SHOWN.items():
            if row := found.get(place):
                one = row["verdict"]
                scale = f", {one.view.scale}" if one.view.scale != "spots" else ""
                values = [number(row["values"][name]) for name in ("ours", "best rival", "ceiling")]
                rows.append([text + scale, *values, interval(one.over_rival), _ended(row["ends"])])
                n_rivals.append(len({name.removesuffix(plan.REGISTERED) for name in self.others(one.view)}))
        ended = Counter(one.sign for one in self.verdicts)
        over_closed_form = Counter(one.sign_over_closed_form for one in self.verdicts)
        fewest, most = min(n_rivals, default=0), max(n_rivals, default=0)
        head = ["correlation with the truth", "ours", "best rival", "ceiling", "difference, 95 % interval", ENDS]
        told = [
            f"*Best rival*: of {fewest} to {most} methods, chosen by these scores. *Ceiling*: noiseless truth.",
            f"Ours won {ended[1]} of {len(self.verdicts)} comparisons, lost {ended[-1]}; against itself",
            f"without network won {over_closed_form[1]}, lost {over_closed_form[-1]}:",
            f"[losses first]({PAGES}/report.md).",
        ]
        return f"{records.table(head, rows)}\n\n{' '.join(told)}"

    def state_of_parts(self) -> str:
        """Each part of the method with the number of real sets on which it helps or harms."""
        helps = self.helps | {ADVERSARY: self.helps_of_adversary}
        rows = [[part, helps.get(switch) or NOT_MEASURED] for part, switch in PARTS.items()]
        return records.table(["part", "real sets on which it helps / no clear effect / harms"], rows)

    def samples(self) -> str:
        """Coverage of sums over blocks with its power, and scores of samples."""
        rows = []
        for view in self.found.views("draws"):
            for name in self.found.methods(view):
                of = {metric: self.found.scores(view, name, metric) for metric in DRAWS}
                if any(of.values()) and not name.startswith(ADVERSARY):
                    rows.append([view.group, view.scale, name, *(_median(values) for values in of.values())])
        return records.table(["set", "block", "samples", *DRAWS], rows) if rows else ""

    def of_adversary(self, view: View, metric: str) -> dict[str, dict[str, dict[str, float]]]:
        """Medians over genes of samples with and without the adversarial learner, by seed and section."""
        found: dict[str, dict[str, dict[str, float]]] = {"with": {}, "without": {}}
        for name in self.found.methods(view):
            if name.startswith(ADVERSARY):
                arm, seed = name.removeprefix(ADVERSARY).split()
                scores = self.found.scores(view, name, metric)
                found[arm][seed] = {section: float(np.median(values)) for section, values in scores.items()}
        return found

    def gain_by_adversary(self, view: View, metric: str) -> tuple[Difference | None, str]:
        """Gain by the adversarial learner in a score of samples, above zero where it helps, and what it is over."""
        arms = self.of_adversary(view, metric)
        seeds = [seed for seed in arms["with"] if seed in arms["without"]]
        about = self.found.about(view)
        over_sections = len(about) >= LEAST_SECTIONS

        def of(arm: str) -> dict[str, np.ndarray]:
            table = np.array([[OF_SAMPLES[metric](arms[arm][seed][section]) for section in about] for seed in seeds])
            names = list(about) if over_sections else seeds
            return dict(zip(names, table.mean(0 if over_sections else 1)[:, None], strict=True))

        if not seeds or not (gain := paired(of("without"), of("with"))):
            return None, ""
        if over_sections:
            return gain, f"{len(about)} sections"
        has_few_spots = min(section["n_spots"] for section in about.values()) < LEAST_SPOTS
        over = f"{len(seeds)} seeds of training" + (" (too few spots)" if has_few_spots else "")
        return gain._replace(has_few_spots=has_few_spots), over

    def adversary(self) -> str:
        """Samples of networks that were trained with and without the adversarial learner."""
        rows = []
        for view in self.found.views("draws"):
            gains = {metric: self.gain_by_adversary(view, metric) for metric in OF_SAMPLES}
            if gains["crps"][0]:
                own = [
                    f"{np.mean([list(one.values()) for one in self.of_adversary(view, metric)[arm].values()]):.3f}"
                    for metric in OF_SAMPLES
                    for arm in ("with", "without")
                ]
                shown = [interval(gain) for gain, _ in gains.values()]
                rows.append([view.group, view.scale, *own, *shown, gains["crps"][1]])
        head = ["set", "block", "CRPS with", "CRPS without", "power with", "power without"]
        head += ["gain in CRPS", "gain in power", "intervals over"]
        return records.table(head, rows) if rows else ""

    def headline(self) -> str:
        """Mean PCC of every method on the section as it is; – where there is none."""
        columns = {f"{view.task} {view.name}": view for view in self.clean}

        def content(method: str, view: View) -> str:
            return number(self.found.mean(view, method, "pcc"))

        return by_method(self.core, columns, content)

    def controls(self) -> str:
        """Ours with the image withheld, moved or upside down."""
        refused = Counter((c["task"], c["group"], c["point"]) for c in self.found.cells if c["status"] == "refused")

        def content(view: View, name: str) -> str:
            shown = [number(self.found.mean(view, name, "pcc"))]
            if name == TURNED and (n := refused[view.task, view.group, view.point]):
                done = len(self.found.scores(view, name, "pcc"))
                shown = [*(shown if done else []), f"refused in {n} of {n + done}"]
            return ", ".join(shown)

        rows = [[view.task, view.name, *(content(view, name) for name in CONTROLS)] for view in self.clean]
        apart = [interval(minus(self.found, view, NO_HE, "pcc", of=TURNED)) for view in self.clean]
        rows = [[*row, one] for row, one in zip(rows, apart, strict=True) if number(np.nan) not in row]
        return records.table(["task", "set", *CONTROLS, "upside down minus no H&E"], rows) if rows else ""

    def shares_of_clean(self, method: str, point: str) -> dict[str, float]:
        """PCC at a point over that of the clean section, by set."""
        shares = {}
        for view in self.found.views("robustness"):
            if view.point == point:
                clean = self.found.mean(view._replace(point=plan.CLEAN), method, "pcc")
                shares[view.group] = self.found.mean(view, method, "pcc") / clean if clean else float("nan")
        return shares

    def robustness(self) -> str:
        """Shares of the undisturbed PCC, by set."""
        views, parts = self.found.views("robustness"), []
        points = [point for point in dict.fromkeys(view.point for view in views) if point != plan.CLEAN]

        for clean in [view for view in views if view.point == plan.CLEAN]:

            def content(method: str, point: str, clean: View = clean) -> str:
                if point == plan.CLEAN:
                    return f"{self.found.mean(clean, method, 'pcc'):.3f}"
                return number(self.shares_of_clean(method, point).get(clean.group, np.nan), 2)

            columns = {point: point for point in (plan.CLEAN, *points)}
            parts += [f"### {clean.group}", by_method(self.found.methods(clean), columns, content)]
        counts: dict[str, Counter[int]] = {}
        for one in self.disturbed:
            counts.setdefault(one.view.point, Counter())[one.sign] += 1
        if counts:
            ends = [[point, *(str(of[sign]) for sign in WORDS)] for point, of in counts.items()]
            parts.append("Against the best rival, all sets and scores:")
            parts.append(records.table(["", *WORDS.values()], ends))
        if "robustness" in self.pictures:
            parts.append(f"![PCC under disturbances]({self.pictures['robustness']})")
        return "\n\n".join(parts)

    def scores(self, views: Mapping[str, View], methods: Iterable[str], *metrics: str, **head: str) -> str:
        """One column per view, of one or more scores."""

        def content(method: str, view: View) -> str:
            return " / ".join(cell(self.found.scores(view, method, metric)) for metric in metrics)

        return by_method(methods, views, content, **head)

    def panel(self) -> str:
        """PCC of the same genes among more and more others."""
        views, parts = self.found.views("panel"), []
        for group in dict.fromkeys(view.group for view in views):
            own = {view.point: view for view in views if view.group == group}
            methods = dict.fromkeys(method for view in own.values() for method in self.found.methods(view))
            parts += [f"### {group}", self.scores(own, methods, "pcc")]
        if "panel" in self.pictures:
            parts.append(f"![PCC by size of the panel]({self.pictures['panel']})")
        return "\n\n".join(parts)

    def domain_scores(self, method: str) -> dict[str, float]:
        """ARI by section."""
        done = self.found.done(task="domains", method=method)
        return {cell["section"]: float(next(iter(cell["scores"].values()))["ari"]) for cell in done}

    def domains(self) -> str:
        """ARI of every method in every section."""
        done = self.found.done(task="domains")
        own = {method: self.domain_scores(method) for method in dict.fromkeys(cell["method"] for cell in done)}

        def content(method: str, section: str) -> str:
            values = own[method]
            return number(values.get(section, np.nan) if section else np.mean(list(values.values())))

        columns = {section: section for section in dict.fromkeys(cell["section"] for cell in done)} | {"mean": ""}
        return by_method(own, columns, content) if own else ""

    def downstream(self) -> str:
        """Domains, spatially variable genes, cell types."""
        parts = []
        for one in self.declared["downstream"]:
            if "score" not in one:
                table = self.domains()
            else:
                views = [view for view in self.clean if view.task in ("phantom", "hr_sim", "hr_real")]
                views = {f"{v.task} {v.name}": v for v in views if present(self.found, v, (one["score"],))}
                tables = [self.scores(views, self.core, one["score"]), self.gaps(views, one["score"])]
                table = "\n\n".join(tables) if views else ""
            parts += [f"### {one['title']}", one.get("text", ""), table] if table else []
        return "\n\n".join(part for part in parts if part)

    def gaps(self, views: Mapping[str, View], metric: str) -> str:
        """Ours minus the best of the others on each set, by a score of the whole map, which has no interval."""
        told = []
        for name, view in views.items():
            means = {other: self.found.mean(view, other, metric) for other in self.others(view)}
            rival = max(means, key=lambda other, of=means: np.nan_to_num(of[other], nan=-1.0))
            told.append(f"{name} {self.found.mean(view, OURS, metric) - means[rival]:+.3f} ({rival})")
        return f"Ours minus the best of the others, without an interval: {'; '.join(told)}."

    def costs(self) -> str:
        """Seconds and memory of every method in every task."""

        def content(method: str, task: str) -> str:
            costs = [cell["cost"] for cell in self.found.done(task=task, method=method)]
            if not costs:
                return "–"
            memory = max(cost.get("memory_mb", 0) for cost in costs)
            return f"{np.mean([cost['seconds'] for cost in costs]):.1f} s, {memory:.0f} MB"

        return by_method(
            self.core, {task: task for task in dict.fromkeys(c["task"] for c in self.found.done())}, content
        )

    def published(self) -> str:
        """Tables of publications, and ours with their definitions."""
        views = {f"{v.task} {v.name}": v for v in self.found.views() if present(self.found, v, LEGACY[:1])}
        table = self.declared["published"]
        rows = [[one["method"], *(f"{rmse:.3f} / {pcc:.3f}" for rmse, pcc in one["scores"])] for one in table["rows"]]
        parts = [
            table["why"].strip(),
            f"Published: {table['source']}.",
            records.table(["method (RMSE / PCC)", *table["columns"]], rows),
            "Here, with the same definitions:",
            self.scores(views, self.core, *LEGACY, head="method (legacy RMSE / PCC / SSIM)"),
        ]
        return "\n\n".join(parts) if views else ""

    def coverage(self) -> str:
        """Cells that are done, and what became of the others."""

        def content(method: str, task: str) -> str:
            own = [one["status"] for one in self.found.cells if (one["task"], one["method"]) == (task, method)]
            return f"{own.count('done')} of {len(own)}" if own else "–"

        tasks = {cell["task"]: cell["task"] for cell in self.found.cells}
        parts = [by_method(self.found.methods(), tasks, content)]
        problems = [[method, status, str(n), why.replace("|", "/")] for method, status, why, n in self.found.problems()]
        if problems:
            parts += ["Without scores:", records.table(["method", "", "results", "why"], problems)]
        return "\n\n".join(parts)


if __name__ == "__main__":
    main()
