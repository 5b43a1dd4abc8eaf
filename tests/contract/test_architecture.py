"""The table of rooms, `docs/concepts/architecture.toml`, checked on the parsed sources."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[2] / "src"
PACKAGE = "hadmst_sc"
MODULES = sorted((SRC / PACKAGE).rglob("*.py"))
MAX_LINES = 400

TABLE = Path(__file__).resolve().parents[2] / "docs" / "concepts" / "architecture.toml"
ROOMS = tomllib.loads(TABLE.read_text())["rooms"]
PUBLIC = {"datasets", "io", "metrics", "models", "pl", "pp", "tl", "train"}  # what the package's __init__ offers

UNSAFE_MODULES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
UNSAFE_CALLS = {"__import__", "eval", "exec", "torch.load", "yaml.load", "yaml.unsafe_load"}


def module_name(path: Path) -> str:
    """Dotted name below the package; a package's ``__init__`` is the package itself."""
    parts = path.relative_to(SRC / PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST) -> set[str]:
    """Full dotted names of everything imported, at any depth of the file."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def violations(name: str, tree: ast.AST) -> list[str]:
    """Imports of module ``name`` that the table does not allow."""
    room = name.split(".")[0]
    if name and room not in ROOMS:
        return [f"{name} has no room in the table"]
    ours = {room, *ROOMS[room]["imports"]} if name else PUBLIC
    libraries = set(ROOMS[room]["libraries"]) if name else set()
    wrong = []
    for full in imports(tree):
        top, _, rest = full.partition(".")
        if top == PACKAGE:
            target = rest.split(".")[0]
            wrong += [full] * ((target if target in ROOMS else "") not in ours)
        elif top not in sys.stdlib_module_names and top not in libraries:
            wrong.append(full)
    return sorted(wrong)


def unsafe(tree: ast.AST) -> list[str]:
    """What could run code hidden in data."""
    found = [name for name in imports(tree) if name.split(".")[0] in UNSAFE_MODULES]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found += [call for call in [ast.unparse(node.func)] if call in UNSAFE_CALLS]
            found += ["allow_pickle" for k in node.keywords if k.arg == "allow_pickle" and not is_false(k.value)]
    return found


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_follow_the_table(path):
    assert violations(module_name(path), ast.parse(path.read_text())) == []


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_nothing_can_run_code_hidden_in_data(path):
    assert unsafe(ast.parse(path.read_text())) == []


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_modules_stay_short(path):
    assert len(path.read_text().splitlines()) <= MAX_LINES


def test_a_room_stands_after_all_that_it_imports():
    order = list(ROOMS)
    for i, room in enumerate(order):
        assert set(ROOMS[room]["imports"]) - {""} <= set(order[:i]), room


def test_the_table_allows_no_more_than_is_used():
    used: dict[str, set[str]] = {room: set() for room in ROOMS}
    for path in MODULES:
        name = module_name(path)
        for full in imports(ast.parse(path.read_text())) if name else ():
            top, _, rest = full.partition(".")
            used[name.split(".")[0]].add(f"{PACKAGE}.{rest.split('.')[0]}" if top == PACKAGE else top)
    for room, row in ROOMS.items():
        allowed = {f"{PACKAGE}.{one}" for one in row["imports"] if one} | set(row["libraries"])
        assert allowed - used[room] == set(), room


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("runtime", "from hadmst_sc.section import grid"),
        ("section.grid", "import pandas"),
        ("section.grid", "from hadmst_sc.regression.kriging import Kernel"),
        ("section.features", "def f():\n    from hadmst_sc.distillation.genes import distill"),
        ("distillation.genes", "import torch"),
        ("distillation.genes", "from hadmst_sc.alignment.register import estimate_alignment"),
        ("alignment.register", "from hadmst_sc.distillation.genes import distill"),
        ("pp.degrade", "import torch"),
        ("pp.degrade", "from hadmst_sc.phantom.simulate import lattice"),
        ("pp.validate", "from hadmst_sc import tl"),
        ("diffusion.sampling", "from hadmst_sc import models"),
        ("models.alignment", "from hadmst_sc.alignment.record import Alignment"),
        ("inference.predict", "from hadmst_sc.io.read import read_observation"),
        ("io.read", "import torch.nn"),
        ("pl.superresolve", "from hadmst_sc.models import diffusion"),
        ("train.loop", "import spatialdata"),
        ("train.data", "from hadmst_sc.datasets import phantom"),
        ("phantom.simulate", "from hadmst_sc.io import read_observation"),
        ("phantom.simulate", "import anndata"),
        ("models.weights", "from hadmst_sc.train import loop"),
        ("metrics.maps", "from hadmst_sc.tl.regions import totals"),
        ("tl.superresolve", "from hadmst_sc.pl import superresolve"),
        ("", "import numpy"),
        ("stray", "import os"),
    ],
)
def test_a_forbidden_import_is_found(name, source):
    assert violations(name, ast.parse(source))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("section.observation", "from hadmst_sc.section.grid import Grid\nimport numpy as np\nimport os"),
        ("models.diffusion", "from hadmst_sc.models.local import LocalUNet\nimport torch"),
        ("train.data", "from hadmst_sc.phantom.simulate import simulate"),
        ("datasets.visium", "from hadmst_sc.phantom.simulate import simulate\nimport spatialdata"),
        ("tl", "from hadmst_sc.tl.superresolve import superresolve"),
        ("cli", "from hadmst_sc import __version__, tl"),
    ],
)
def test_an_allowed_import_is_not_reported(name, source):
    assert violations(name, ast.parse(source)) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import torch\ntorch.load('x')",
        "eval('1')",
        "yaml.load(text)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
    ],
)
def test_unsafe_code_is_found(source):
    assert unsafe(ast.parse(source))


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("distillation.genes", "torch spatialdata anndata matplotlib"),
        ("phantom.simulate", "torch spatialdata anndata matplotlib"),
        ("io", "torch matplotlib"),
        ("pp", "torch matplotlib"),
        ("alignment.register", "torch spatialdata anndata matplotlib"),
        ("metrics", "torch spatialdata matplotlib"),
        ("pl", "torch"),
        pytest.param("models", "spatialdata anndata matplotlib", marks=pytest.mark.torch),
        pytest.param("inference.predict", "spatialdata anndata matplotlib", marks=pytest.mark.torch),
        pytest.param("train.loop", "spatialdata anndata matplotlib", marks=pytest.mark.torch),
    ],
)
def test_modules_do_not_load_what_they_may_not_import(module, absent):
    code = f"import sys, hadmst_sc.{module}; print([m for m in {absent.split()} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (out.stdout.strip(), out.returncode) == ("[]", 0), out.stderr[-500:]


def passing_on(tree: ast.AST, name: str) -> list[str]:
    """Functions that have a parameter and do nothing with it but hand it to another function."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef):
            continue
        parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        if name not in [one.arg for one in parameters]:
            continue
        used = [one for one in ast.walk(node) if isinstance(one, ast.Name) and one.id == name]
        calls = [
            one for one in ast.walk(node) if isinstance(one, ast.Call) and not ast.unparse(one.func).startswith("np.")
        ]
        handed = {id(value) for call in calls for value in [*call.args, *(k.value for k in call.keywords)]}
        if used and all(id(one) in handed for one in used):
            found.append(node.name)
    return found


@pytest.mark.parametrize("name", ["consistency", "client", "n_steps", "random_state"])
def test_settings_travel_as_one_object(name):
    """A parameter that goes through many hands is changed in many places."""
    found = [f"{module_name(path)}.{one}" for path in MODULES for one in passing_on(ast.parse(path.read_text()), name)]
    assert len(found) <= 2, found


def test_a_function_that_passes_a_parameter_on_is_found():
    source = "def f(a, client):\n    return g(a, client=client)\ndef h(client):\n    return client.submit(1)"
    assert passing_on(ast.parse(source), "client") == ["f"]
