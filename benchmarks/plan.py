"""From ``benchmark.toml`` to cells: one method on one section at one point of one task.

A cell knows all that its numbers depend on: options, files, weights and the code that it runs. :attr:`Cell.settings` is
a digest of it, and a result is fresh as long as that digest is the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import records
import sources
from pairs import LEAST_SECTIONS
from records import ROOT, bundled, sha256

FILE = Path(__file__).with_name("benchmark.toml")
CLEAN = "clean"
PROFILES = ("quick", "full")
REGISTERED = ", registered"  # end of the name of a rival that is given the section as registered by ours
PARTS = ("declared", "method", "case")  # of settings, see :attr:`Cell.settings`
TRAINED = ", trained "  # before the name of a training run whose weights a method of ours uses


@dataclass(frozen=True)
class Cell:
    """One method on one section at one point of one task."""

    task: str
    group: str  # the set: sections of one kind, averaged in tables
    section: str
    point: str  # "clean", or what was done to the section
    method: str
    case: str
    options: Mapping[str, Any]
    disturbance: tuple[str, float] | None = None
    weights: str = "default"
    align: bool | str = True
    few: bool = True  # the set has too few sections for an interval over them
    reference: bool = False  # a ceiling or the truth itself
    inputs: Mapping[str, str] = field(default_factory=dict)  # sha256 of the files it reads

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Names that no two cells share."""
        return self.task, self.section, self.point, self.method

    @property
    def ours(self) -> bool:
        """True for a method of ours, with or without a switch."""
        return self.method.startswith("ours")

    @property
    def registered(self) -> bool:
        """True for a rival that is given the section as registered by ours."""
        return self.method.endswith(REGISTERED)

    @property
    def bare(self) -> str:
        """Name of the method, without what it is given."""
        return self.method.removesuffix(REGISTERED)

    @cached_property
    def settings(self) -> str:
        """Digest of all that the numbers depend on: what is declared, the code of the method, the code of the case."""
        depends: list[Any] = [self.case, self.options, self.disturbance, self.inputs, self.few]
        if self.ours:
            depends.append(weights_sha256(self.weights))
        if self.ours or self.registered:
            depends.append(self.align)
        declared = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:12]
        method = "reference" if self.reference else _code_of_method(self.method)
        case = _code_of(_module_of(self.case)) + (_code_of("cases.registered") if self.registered else "")
        return ".".join((declared, method, case))

    @property
    def place(self) -> tuple[str, ...]:
        """The section, and how it is read: cells that agree in it can share one reading."""
        return self.case, json.dumps([self.options, self.disturbance, self.align, self.few], sort_keys=True)

    @property
    def identity(self) -> tuple[str, str]:
        """The method, and all that its numbers depend on: cells of two tasks that agree in it have the same result."""
        return self.method, self.settings

    def state(self, result: Mapping[str, Any] | None) -> str:
        """State of a result of this cell: ``"fresh"``, ``"stale"``, ``"failed"``, ``"skipped"`` or ``"missing"``.

        An image that was put wrong on purpose and is refused has its result.
        """
        if result is None:
            return "missing"
        if result["status"] not in ("done", "refused"):
            return str(result["status"])
        return "fresh" if result["settings"] == self.settings else "stale"

    def differs_in(self, settings: str) -> set[str]:
        """Parts of the settings that differ from those of a result: ``"declared"``, ``"method"`` and ``"case"``."""
        known, now = settings.split("."), self.settings.split(".")
        return {part for part, one, other in zip(PARTS, known, now, strict=True) if one != other}


@cache
def _code_of(module: str) -> str:
    path = sources.find(module)
    assert path is not None
    return sources.digest([path])


@cache
def _module_of(case: str) -> str:
    import cases

    return cases.CASES[case].__module__


@cache
def _code_of_method(method: str) -> str:
    import methods

    parts = [sources.digest(methods.source_files(method)), *methods.recipe(method)]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:12]


@cache
def load(path: Path = FILE) -> dict[str, Any]:
    """The declaration."""
    return tomllib.loads(path.read_text())


def cells(declared: Mapping[str, Any], profile: str) -> list[Cell]:
    """All cells of a profile, in the order of the file."""
    found = [cell for name in declared["tasks"] for cell in _of_task(declared, name, profile)]
    (key, times), *_ = Counter(cell.key for cell in found).most_common(1)
    if times > 1:
        raise ValueError(f"`benchmark.toml` needs sections with different names, but {key} comes twice.")
    return found


def _of_task(declared: Mapping[str, Any], name: str, profile: str) -> Iterator[Cell]:
    task = dict(declared["tasks"][name])
    quick = task.pop("quick", {})
    if profile == "quick":
        task |= {key: value for key, value in quick.items() if key not in ("options", "sets")}
        wanted = quick.get("sets", [one["name"] for one in task["sets"]])
        forced = quick.get("options", {})
        task["sets"] = [
            one | {"options": one.get("options", {}) | forced} for one in task["sets"] if one["name"] in wanted
        ]
    for one in task["sets"]:
        groups = task["methods"] if profile == "quick" else one.get("methods", task["methods"])
        methods = [method for group in groups for method in declared["methods"].get(group, [group])]
        if "registered" in one.get("also", task.get("also", [])):
            methods = [*methods, *_registered(methods, str(one.get("align", True)))]
        sections, only = list(_sections(one, task)), task.get("only", {})
        for section, options in sections:
            inputs = _inputs(declared, one, options)
            for point, more, disturbance in _points(task):
                references = task.get("references", [])
                for method in [*methods, *references]:
                    if disturbance is not None and disturbance[0] not in only.get(method, [disturbance[0]]):
                        continue
                    trained = method.partition(TRAINED)[2]
                    yield Cell(
                        task=name,
                        group=one["name"],
                        section=section,
                        point=point,
                        method=method,
                        case=one.get("case", task.get("case")),
                        options=options | more,
                        disturbance=disturbance,
                        weights=declared["trained"][trained] if trained else one.get("weights", "default"),
                        align=one.get("align", True),
                        few=len(sections) < LEAST_SECTIONS,
                        reference=method in references,
                        inputs=inputs,
                    )


def _registered(methods: Sequence[str], align: str) -> list[str]:
    """The rivals of a list on the section as ours registers it; without an image that moves there is no difference."""
    import rivals

    still = rivals.WITHOUT_IMAGE if align != "spots" else ("zero",)
    known = [name for name in methods if not name.startswith("ours") and name.split(",")[0] not in still]
    return [name + REGISTERED for name in known]


def _sections(one: Mapping[str, Any], task: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and options of each section of a set: those named, or a phantom per seed with its styles in turn."""
    options = task.get("options", {}) | one.get("options", {})
    if "styles" in one:
        for i in range(min(one["seeds"], task.get("most_seeds", one["seeds"]))):
            seed, style = one["first_seed"] + i, one["styles"][i % len(one["styles"])]
            yield f"{style} {seed}", options | {"seed": seed, "style": style}
    elif "sections" in one:
        for section in one["sections"][: task.get("most_seeds")]:
            yield section, options | {"section": section}
    else:
        yield one["name"], options


def _points(task: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any], tuple[str, float] | None]]:
    """Name, options and disturbance of each point of a curve; one point where the task is no curve."""
    if "sweep" in task:
        for name, values in task["sweep"].items():
            for value in values:
                yield f"{name}={value:g}", {name: value}, None
        return
    yield CLEAN, {}, None
    for name, values in task.get("disturbances", {}).items():
        for value in values:
            yield f"{name}={value:g}", {}, (name, float(value))


def _inputs(declared: Mapping[str, Any], one: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, str]:
    names: Sequence[str] = one.get("inputs", [options["section"]] if "section" in options else [])
    return {file: digest for name in names for file, digest in declared["inputs"][name].items()}


# --- what can be run here ---------------------------------------------------------------------------------------------


def data_folder() -> Path:
    """Folder of the real sections: ``$HADMST_DATA``, else beside the project."""
    return Path(os.environ.get("HADMST_DATA") or ROOT.parent / "shared" / "data")


def missing_input(cell: Cell) -> str | None:
    """Why a cell's sections cannot be read, in one sentence; ``None`` if they can."""
    for file, expected in cell.inputs.items():
        path = data_folder() / file
        if not path.is_file():
            return f"{file} is not in the data folder (HADMST_DATA)"
        if sha256(path) != expected:
            return f"{file} is not the file that benchmark.toml names (sha256 differs)"
    return None


def weights_path(name: str) -> Path:
    """File of bundled weights, or of a path seen from the checkout."""
    return bundled(name) or ROOT / name


@cache
def weights_of(section: str) -> Path:
    """Weights that have not seen the tissue of a section: those of the first set that holds it."""
    sets = [one for task in load()["tasks"].values() for one in task["sets"]]
    return weights_path(
        next(
            one["weights"]
            for one in sets
            if section in (*one.get("sections", ()), one.get("options", {}).get("section")) and "weights" in one
        )
    )


def weights_sha256(name: str) -> str:
    """Digest of the weights of that name or path."""
    return sha256(weights_path(name))


def up_to_date(name: str, script: str) -> bool:
    """Tell if the result of a measurement was made by its code and weights of today."""
    made = records.read(records.RESULTS / f"{name}.json").get("provenance", {})
    used = made.get("weights_sha256", {})
    of_today = all(digest == weights_sha256("default") for name, digest in used.items() if name.startswith("default."))
    return of_today and made.get("code") == sources.digest([ROOT / shlex.split(script)[0]])
