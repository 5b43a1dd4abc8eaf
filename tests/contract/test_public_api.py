from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys

import numpy as np
import pytest
from anndata import AnnData

import hadmst_sc as hd

SUBMODULES = [
    pytest.param(name, marks=pytest.mark.torch) if name in ("models", "tl", "train") else name
    for name in hd.__all__
    if name != "__version__"
]

# The call of `tl.superresolve`: a change here is a change for every user.
SUPERRESOLVE = {
    "sdata": inspect.Parameter.empty,
    "image_key": inspect.Parameter.empty,
    "table_key": "table",
    "shapes_key": None,
    "coordinate_system": None,
    "layer": None,
    "genes": None,
    "bin_um": 10.0,
    "spot_um": None,
    "pitch_um": None,
    "tissue_key": None,
    "obsm_key": None,
    "model": "default",
    "with_std": True,
    "n_metagenes": None,
    "consistency": "soft",
    "align": True,
    "gate": True,
    "features": None,
    "device": "auto",
    "batch_size": None,
    "n_jobs": None,
    "client": None,
    "cells_key": None,
    "key_added": "superres",
    "overwrite": False,
    "copy": False,
    "show_progress_bar": True,
}


def functions(submodule: str):
    """Public functions of a submodule, by name."""
    module = importlib.import_module(f"hadmst_sc.{submodule}")
    return {name: member for name in module.__all__ if inspect.isfunction(member := getattr(module, name))}


@pytest.mark.parametrize("name", SUBMODULES)
def test_each_public_name_is_its_submodule(name):
    assert getattr(hd, name) is importlib.import_module(f"hadmst_sc.{name}")


def test_dir_lists_the_public_names():
    assert set(dir(hd)) == {"__version__", "datasets", "io", "metrics", "models", "pl", "pp", "tl", "train"}


@pytest.mark.torch
@pytest.mark.parametrize("old", hd.MOVED)
def test_a_module_under_its_old_name_is_the_new_one(old):
    with pytest.warns(DeprecationWarning, match=rf"`hadmst_sc\.{re.escape(old)}` is `hadmst_sc\.{hd.MOVED[old]}` now"):
        found = importlib.import_module(f"hadmst_sc.{old}")
    new = importlib.import_module(f"hadmst_sc.{hd.MOVED[old]}")
    assert found is new and new.__spec__.name == new.__name__


def test_an_unknown_name_lists_what_is_there():
    with pytest.raises(AttributeError, match=r"no attribute 'superresolve'\. Available: .*'tl'"):
        _ = hd.superresolve


def test_import_is_light_and_takes_at_most_50_milliseconds():
    code = (
        "import sys, time; start = time.process_time(); import hadmst_sc; took = time.process_time() - start;"
        "heavy = [m for m in ('torch', 'matplotlib', 'spatialdata', 'anndata', 'numpy') if m in sys.modules];"
        "print(heavy, took)"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    heavy, seconds = zip(*(run.stdout.rsplit(maxsplit=1) for run in runs), strict=True)
    assert set(heavy) == {"[]"}
    assert min(map(float, seconds)) <= 0.05


def test_version_is_that_of_the_distribution():
    from importlib.metadata import PackageNotFoundError, version

    try:
        assert version("hadmst-sc") == hd.__version__
    except PackageNotFoundError:
        pytest.skip("the package is not installed: `pip install -e .`")


@pytest.mark.torch
def test_superresolve_has_the_signature_of_the_data_contract():
    signature = inspect.signature(hd.tl.superresolve)
    assert {name: p.default for name, p in signature.parameters.items()} == SUPERRESOLVE
    assert [p.kind.name for p in signature.parameters.values()] == ["POSITIONAL_OR_KEYWORD"] * 2 + ["KEYWORD_ONLY"] * (
        len(SUPERRESOLVE) - 2
    )


@pytest.mark.parametrize("submodule", SUBMODULES)
def test_every_public_function_documents_and_annotates_every_argument(submodule):
    lacking = []
    for name, function in functions(submodule).items():
        signature, text = inspect.signature(function), inspect.getdoc(function) or ""
        sections = re.split(r"\n(?=\w[\w ]*\n-{3,}\n)", text)
        stated = next((s for s in sections if s.startswith("Parameters\n")), "")
        documented = {n.strip(" *`") for line in re.findall(r"^(\S.*)$", stated, re.M) for n in line.split(",")}
        for parameter in signature.parameters.values():
            if parameter.annotation is inspect.Parameter.empty:
                lacking.append(f"{submodule}.{name}: `{parameter.name}` has no type")
            if parameter.name not in documented:
                lacking.append(f"{submodule}.{name}: `{parameter.name}` is not documented")
        if signature.return_annotation is inspect.Signature.empty:
            lacking.append(f"{submodule}.{name}: no return type")
    assert lacking == []


@pytest.mark.parametrize("submodule", SUBMODULES)
def test_everything_public_that_is_called_has_an_example(submodule):
    """`tests/docs/test_examples.py` runs them."""
    module, lacking = importlib.import_module(f"hadmst_sc.{submodule}"), []
    for name in module.__all__:
        member = getattr(module, name)
        shown = re.search(r"\nExamples\n-+\n.*?>>> .*", inspect.getdoc(member) or "", re.S)
        # What a function's example shows is that function; some classes are only ever returned.
        if callable(member) and not (shown and (inspect.isclass(member) or f"hd.{submodule}.{name}(" in shown[0])):
            lacking.append(f"{submodule}.{name}")
    assert lacking == []


def test_the_table_of_verbs_has_every_verb_and_no_other(root):
    table = (
        (root / "docs" / "reference" / "verbs.md")
        .read_text()
        .split("<!-- verbs -->")[1]
        .split("<!-- end of verbs -->")[0]
    )
    shown = re.findall(r"^\| `(\w+\.\w+)` \|", table, re.M)
    verbs = [f"{part}.{name}" for part in ("pl", "pp", "tl") for name in functions(part)]
    assert sorted(shown) == sorted([*verbs, "io.export", "io.from_anndata", "metrics.score"])


@pytest.mark.parametrize("submodule", SUBMODULES)
def test_every_verb_says_what_it_needs_instead_of_an_anndata_or_nothing(submodule):
    for name, function in functions(submodule).items():
        parameters = inspect.signature(function).parameters
        if next(iter(parameters), None) != "sdata" or name == "check_size":  # which takes `None`
            continue
        needed = [one.name for one in parameters.values() if one.default is one.empty][1:]
        for thing in (AnnData(np.ones((2, 2))), None, "section.zarr", 3):
            if name == "validate":
                assert "`sdata` needs a SpatialData, but is" in str(function(thing, "he"))
                continue
            with pytest.raises(TypeError, match="`sdata` needs a SpatialData, but is"):
                function(thing, **dict.fromkeys(needed, "x"))
