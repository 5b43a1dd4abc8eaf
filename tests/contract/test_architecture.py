"""The table "who may import whom" of `docs/concepts/architecture.md`, checked on the parsed sources."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[2] / "src"
PACKAGE = "hadmst_sc"
MODULES = sorted((SRC / PACKAGE).rglob("*.py"))
MAX_LINES = 400

ARRAYS = {"numpy", "scipy", "skimage"}
SPATIAL = ARRAYS | {"anndata", "dask", "geopandas", "PIL", "pandas", "shapely", "spatialdata", "xarray", "zarr"}
# In this order: each may import only what stands before it.
FIRST_ROW = (
    "threads",
    "grid",
    "measurement",
    "arguments",
    "contract",
    "features",
    "kriging",
    "additive",
    "alignment",
    "agreement",
    "place",
    "deformation",
    "registration",
    "components",
    "distill",
    "reliability",
    "uncertainty",
)
SIMULATOR = {f"datasets.{name}" for name in ("cells", "fields", "genes", "render", "simulate", "spots", "tissue")}

# package or module -> (libraries, parts of this package) that it may import besides the standard library and itself
ALLOWED: dict[str, tuple[set[str], set[str]]] = {
    "allocator": (set(), set()),
    **{name: (ARRAYS, set(FIRST_ROW[:i])) for i, name in enumerate(FIRST_ROW)},
    "threads": ({"numpy", "threadpoolctl"}, set()),
    "metagenes": (ARRAYS | {"sklearn"}, {*FIRST_ROW}),
    "expression": (ARRAYS | {"torch"}, {*FIRST_ROW}),
    "models": (ARRAYS | {"torch"}, {*FIRST_ROW, "expression"}),
    "diffusion": (ARRAYS | {"torch"}, {*FIRST_ROW, "expression"}),
    "io": (SPATIAL | {"filelock"}, {"allocator", *FIRST_ROW}),
    "pp": (SPATIAL, {*FIRST_ROW, "io"}),
    "pp.validate": (SPATIAL | {"torch"}, {*FIRST_ROW, "io", "tl", "weights"}),  # tells what a run will cost
    "metrics": (ARRAYS, set()),
    "datasets": (SPATIAL, {"allocator", *FIRST_ROW, "io"}),
    "datasets.observe": (SPATIAL, {*FIRST_ROW, "datasets", "io", "pp"}),  # public sections, read as a user's are
    "datasets.own": (SPATIAL, {*FIRST_ROW, "datasets", "io", "pp"}),  # a user's own, to train on
    **{name: (ARRAYS, {*FIRST_ROW, *SIMULATOR}) for name in SIMULATOR},
    "weights": ({"numpy", "safetensors", "torch"}, {*FIRST_ROW, "models", "expression"}),
    "train": (
        ARRAYS | {"lightning_fabric", "matplotlib", "safetensors", "threadpoolctl", "torch", "tqdm"},
        {"allocator", *FIRST_ROW, "expression", "models", "diffusion", "weights", "metrics", *SIMULATOR},
    ),
    # Reading footprints again would repeat `io`, which is as free of torch as `pl` must be.
    "pl": (
        SPATIAL | {"matplotlib", "mpl_toolkits", "spatialdata_plot"},
        {"alignment", "arguments", "contract", "grid", "io", "uncertainty"},
    ),
    "tl": (
        SPATIAL | {"distributed", "torch", "tqdm"},
        {"allocator", *FIRST_ROW, "metagenes"}
        | {"expression", "models", "diffusion", "io", "pp", "metrics", "datasets", "weights"},
    ),
    "cli": (
        SPATIAL | {"matplotlib", "torch", "typer"},
        {"datasets", "io", "metrics", "models", "pl", "pp", "tl", "train", "weights", "contract", ""},
    ),
    # For type checkers only; that nothing loads is measured in `test_public_api`.
    "": (set(), {"datasets", "io", "metrics", "models", "pl", "pp", "tl"}),
}

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


def owner(name: str, table: set[str]) -> str:
    """Longest entry of ``table`` that is ``name`` or one of its parents."""
    parts = name.split(".")
    return next((key for i in range(len(parts), 0, -1) if (key := ".".join(parts[:i])) in table), "")


def violations(name: str, tree: ast.AST) -> list[str]:
    """Imports of module ``name`` that the table does not allow."""
    key = owner(name, set(ALLOWED))
    if key == "" and name:
        return [f"{name} has no row in the table"]
    libraries, ours = ALLOWED[key]
    # A row for one module is about that module; anything may import from its own package.
    known, wrong = ours | {key}, []
    for full in imports(tree):
        top, _, rest = full.partition(".")
        if top == PACKAGE:
            target = owner(rest, set(ALLOWED) | known)
            parents = {".".join(target.split(".")[:i]) for i in range(1, target.count(".") + 2)}
            if target not in known and not parents & known:
                wrong.append(full)
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


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("allocator", "import numpy"),
        ("allocator", "from hadmst_sc import grid"),
        ("distill", "from hadmst_sc.allocator import freed_memory_kept"),
        ("grid", "import pandas"),
        ("grid", "from hadmst_sc.measurement import discs"),
        ("measurement", "from hadmst_sc import contract"),
        ("features", "def f():\n    from hadmst_sc.distill import distill"),
        ("distill", "import torch"),
        ("registration", "from hadmst_sc.distill import distill"),
        ("alignment", "from hadmst_sc.registration import estimate_alignment"),
        ("pp.degrade", "import torch"),
        ("pp.degrade", "from hadmst_sc.datasets.spots import lattice"),
        ("models.unet", "from hadmst_sc.diffusion.tiling import tiled"),
        ("diffusion.sampling", "from hadmst_sc import models"),
        ("io.read", "import torch.nn"),
        ("pl.superresolve", "from hadmst_sc.models import hadmst"),
        ("train.loop", "import spatialdata"),
        ("train.data", "from hadmst_sc.datasets import section"),
        ("train.data", "from hadmst_sc.datasets import phantom"),
        ("datasets.simulate", "from hadmst_sc.io import read_observation"),
        ("datasets.simulate", "import anndata"),
        ("weights", "from hadmst_sc.train import loop"),
        ("metrics", "from hadmst_sc import grid"),
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
        ("contract", "from hadmst_sc.grid import Grid\nimport numpy as np\nimport os"),
        ("models.hadmst", "from hadmst_sc.models.unet import UNet\nimport torch"),
        ("train.loop", "from hadmst_sc.allocator import freed_memory_kept"),
        ("train.data", "from hadmst_sc.datasets.simulate import simulate"),
        ("train.data", "from hadmst_sc.datasets import simulate"),
        ("datasets.section", "from hadmst_sc.datasets.simulate import simulate\nimport spatialdata"),
        ("tl", "from hadmst_sc.tl.superresolve import superresolve"),
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
        ("distill", "torch spatialdata anndata matplotlib"),
        ("datasets.simulate", "torch spatialdata anndata matplotlib"),
        ("io", "torch matplotlib"),
        ("pp", "torch matplotlib"),
        ("registration", "torch spatialdata anndata matplotlib"),
        ("metrics", "torch spatialdata matplotlib"),
        ("pl", "torch"),
        pytest.param("models", "spatialdata anndata matplotlib", marks=pytest.mark.torch),
        pytest.param("diffusion.sampling", "spatialdata anndata matplotlib", marks=pytest.mark.torch),
        pytest.param("train.loop", "spatialdata anndata matplotlib", marks=pytest.mark.torch),
    ],
)
def test_modules_do_not_load_what_they_may_not_import(module, absent):
    code = f"import sys, hadmst_sc.{module}; print([m for m in {absent.split()} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (out.stdout.strip(), out.returncode) == ("[]", 0), out.stderr[-500:]
