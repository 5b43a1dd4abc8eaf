"""Versions of what we depend on are the same in all files that name them, and what CI runs is pinned."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import hadmst_sc

ON_CONDA = {"dask": "dask-core", "matplotlib": "matplotlib-base", "torch": "pytorch"}
EXACT = re.compile(r"^([\w.-]+)==([\w.+]+)", re.M)


@pytest.fixture(scope="module")
def table(root) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def workflows(root) -> dict[str, Any]:
    files = [*(root / ".github" / "workflows").iterdir()]
    return {path.stem: yaml.safe_load(path.read_text()) for path in files}


def floors(lines: list[str]) -> dict[str, Version | None]:
    """The lower bound of each requirement; `None` where there is none."""
    bounds = {}
    for one in map(Requirement, lines):
        lower = [Version(part.version) for part in one.specifier if part.operator == ">="]
        bounds[one.name] = lower[0] if lower else None
    return bounds


def pinned(text: str) -> dict[str, Version]:
    return {name: Version(version) for name, version in EXACT.findall(text)}


def test_lower_bounds_are_the_versions_that_the_tests_run_with(root, table):
    project = table["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    declared = floors([*project["dependencies"], *extras])
    lowest = pinned((root / ".ci" / "lowest.txt").read_text())
    free = {name for name, floor in declared.items() if floor is None}
    assert free == {"pynndescent"}  # not ours: only its newest versions are refused
    assert {name: floor for name, floor in declared.items() if name not in free} == {
        name: lowest[name] for name in declared.keys() - free
    }, "run `make lowest`, then raise the bounds in pyproject.toml to what it found"


def test_constraints_are_within_the_bounds_and_name_every_tool(root, table):
    project = table["project"]
    groups = [line for lines in table["dependency-groups"].values() for line in lines if isinstance(line, str)]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    pins = pinned((root / "constraints.txt").read_text())
    wrong = [
        str(one)
        for one in map(Requirement, [*project["dependencies"], *extras, *groups])
        if one.name not in pins or pins[one.name] not in one.specifier
    ]
    assert wrong == []


def test_recipe_of_conda_asks_for_the_same(root, table):
    recipe = yaml.safe_load((root / ".ci" / "conda" / "recipe.yaml").read_text())
    run = [Requirement(line) for line in recipe["requirements"]["run"] if not line.startswith("python ")]
    wanted = [Requirement(line) for line in table["project"]["dependencies"]]
    assert [(one.name, one.specifier) for one in run] == [
        (ON_CONDA.get(one.name, one.name), one.specifier) for one in wanted
    ]
    host = {Requirement(line) for line in recipe["requirements"]["host"] if line.startswith("hatch")}
    assert host == {Requirement(line) for line in table["build-system"]["requires"]}
    assert recipe["context"]["version"] == hadmst_sc.__version__
    assert table["project"]["requires-python"] == f">={recipe['context']['python_min']}"
    assert recipe["build"]["python"]["entry_points"] == [
        f"{name} = {target}" for name, target in table["project"]["scripts"].items()
    ]
    assert (recipe["about"]["summary"], recipe["about"]["license"]) == (
        table["project"]["description"],
        table["project"]["license"],
    )


def test_dockerfile_installs_what_is_there_with_the_constraints(root, table):
    text = (root / "Dockerfile").read_text().replace("\\\n", "")
    steps = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    said = {word: rest for word, rest in steps if word not in ("COPY", "RUN")}
    copied = [name for word, rest in steps if word == "COPY" for name in rest.split()[:-1]]
    assert [name for name in copied if not (root / name).exists()] == []
    assert {"src", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"} == set(copied)
    sent = {line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sent == set(copied)
    install = next(rest for word, rest in steps if word == "RUN" and "pip install" in rest)
    assert "--constraint constraints.txt" in install and "download.pytorch.org/whl/cpu" in install
    extras = re.search(r"'\.\[(.*)\]'", install)[1].split(",")
    assert set(extras) <= set(table["project"]["optional-dependencies"])
    python = re.fullmatch(r"python:(3\.\d+)-slim", said["FROM"])[1]
    assert f"Programming Language :: Python :: {python}" in table["project"]["classifiers"]
    assert said["ENTRYPOINT"] == f'["{next(iter(table["project"]["scripts"]))}"]' and said["USER"] != "root"


def test_makefile_installs_every_extra(root, table):
    extras = re.search(r"^EXTRAS := (.*)$", (root / "Makefile").read_text(), re.M)[1].split(",")
    assert extras == sorted(table["project"]["optional-dependencies"])


def test_actions_and_hooks_are_pinned(root, workflows):
    lines = [
        line
        for path in (root / ".github" / "workflows").iterdir()
        for line in path.read_text().splitlines()
        if "uses:" in line
    ]
    assert lines and [line for line in lines if not re.search(r"@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line)] == []
    used = {re.search(r"uses: (\S+ # \S+)", line)[1] for line in lines}
    assert len({one.split("@")[0] for one in used}) == len(used), "one version of each action"
    hooks = yaml.safe_load((root / ".pre-commit-config.yaml").read_text())["repos"]
    assert [one["repo"] for one in hooks if not re.fullmatch(r"v\d+\.\d+\.\d+", one["rev"])] == []


def test_workflows_run_commands_of_the_makefile(root, workflows):
    targets = set(re.findall(r"^([\w-]+):", (root / "Makefile").read_text(), re.M))
    matrix = workflows["versions"]["jobs"]["test"]["strategy"]["matrix"]["include"]
    steps = [step for flow in workflows.values() for job in flow["jobs"].values() for step in job["steps"]]
    made = [line.split()[1] for line in [one.get("run", "") for one in [*steps, *matrix]] if line.startswith("make ")]
    assert {"coverage", "dist", "test-lowest", "test-newest", "test-no-torch"} == set(made) <= targets
    assert [one["name"] for one in matrix if one["may-fail"]] == ["pre-releases"]


def test_nothing_is_published_from_another_index(root, workflows):
    text = (root / ".github" / "workflows" / "release.yml").read_text()
    assert "index" not in text.replace("no other index", "").lower() and "cache: pip" not in text
    publish = workflows["release"]["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"} and set(publish["needs"]) == {"build", "try"}


def test_pages_are_built_without_executing_tutorials(root):
    build = yaml.safe_load((root / ".readthedocs.yaml").read_text())["build"]
    commands = [*build["jobs"]["install"], *build["jobs"]["build"]["html"]]
    assert any("-W" in line for line in commands)
    assert re.search(r'^nb_execution_mode = "off"', (root / "docs" / "conf.py").read_text(), re.M)
    assert any("--group docs" in line for line in commands)
