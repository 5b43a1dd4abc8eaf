"""A result is stale when its code changes, and only then."""

from __future__ import annotations

import pytest

FILES = {
    "top.py": (
        '"""Top."""\nfrom typing import TYPE_CHECKING\n'
        "from pack import inner\nif TYPE_CHECKING:\n    import types_only\n"
    ),
    "pack/__init__.py": "",
    "pack/inner.py": "def value():\n    import late\n\n    return late.ONE\n",
    "late.py": "ONE = 1\n",
    "types_only.py": "TWO = 2\n",
    "apart.py": "THREE = 3\n",
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """``digest(**changed)`` of ``top.py`` in a small project of which some files are changed."""
    import sources

    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(sources, "ROOTS", (tmp_path,))
    caches = (sources.closure, sources._imported, sources._code)

    def digest(changed: dict[str, str] | None = None) -> str:
        for name, text in (FILES | (changed or {})).items():
            (tmp_path / name).write_text(text)
        for cached in caches:
            cached.cache_clear()
        return sources.digest([tmp_path / "top.py"])

    digest.folder = tmp_path
    yield digest
    for cached in caches:
        cached.cache_clear()


@pytest.mark.parametrize(
    "text",
    [
        '"""A sentence."""\n# A comment.\ndef value():\n    """What it is."""\n    import late\n    return late.ONE\n',
        "def value():\n\n    import late  # why\n\n\n    return (late.ONE)\n",
    ],
)
def test_sentences_and_layout_leave_the_digest(project, text):
    assert project({"pack/inner.py": text}) == project()


def test_a_package_that_passes_names_on_has_no_code_of_its_own(project):
    lazy = "def __getattr__(name):\n    return name\n"
    top = {"top.py": "import pack\n"}
    assert project(top | {"pack/__init__.py": "from late import ONE\n" + lazy}) == project(
        top | {"pack/__init__.py": "from late import ONE\n__all__ = ['ONE', 'more']\n" + lazy}
    )
    changed = {"late.py": "ONE = 2\n"}
    assert project(top | {"pack/__init__.py": "from late import ONE\n" + lazy} | changed) != project(
        top | {"pack/__init__.py": "from late import ONE\n" + lazy}
    )


@pytest.mark.parametrize("name", ["top.py", "pack/inner.py", "late.py"])
def test_a_changed_line_of_anything_imported_changes_the_digest(project, name):
    assert project({name: FILES[name] + "MORE = 4\n"}) != project()
    assert project({name: FILES[name].replace("ONE", "UNO")}) != project() or name == "top.py"


@pytest.mark.parametrize("name", ["types_only.py", "apart.py"])
def test_what_is_imported_for_types_or_not_at_all_leaves_the_digest(project, name):
    assert project({name: FILES[name] + "MORE = 4\n"}) == project()


def test_imports_are_followed_into_functions_and_modules_of_packages(project):
    import sources

    project()
    found = {path.relative_to(project.folder).as_posix() for path in sources.closure(project.folder / "top.py")}
    assert found == {"top.py", "pack/inner.py", "late.py"}


def names_of_the_benchmark():
    import plan

    known = {name for task in plan.load()["tasks"].values() for name in task.get("references", [])}
    return {cell.method for profile in plan.PROFILES for cell in plan.cells(plan.load(), profile)} - known


def code_of(method):
    import methods
    import sources

    files = {one for file in methods.source_files(method) for one in sources.closure(file)}
    return {path.relative_to(sources.HERE.parent).as_posix() for path in files}


def test_every_method_of_the_benchmark_has_a_digest_of_its_own_family():
    import plan

    for name in names_of_the_benchmark():
        assert len(plan._code_of_method(name)) == 12
        assert code_of(name), name


def test_a_rival_does_not_depend_on_ours():
    import methods
    import peers
    import switches
    from plan import TRAINED

    trained = {name for name in names_of_the_benchmark() if TRAINED in name}  # ours, with other weights
    assert trained and all(code_of(name) == code_of("ours") for name in trained)
    for name in names_of_the_benchmark() - switches.SWITCHES.keys() - trained:
        code = code_of(name)
        assert not [file for file in code if "/inference/" in file or "/models/" in file], name
        bare = name.removesuffix(methods.REGISTERED)
        assert any(
            file.startswith("benchmarks/peers" if bare in peers.PEERS else "benchmarks/rivals/") for file in code
        )
        assert code == code_of(bare)


def test_ours_depends_on_every_part_of_itself():
    code = code_of("ours")
    for part in ("distillation", "models", "inference", "alignment", "diffusion", "section", "regression"):
        assert any(file.startswith(f"src/hadmst_sc/{part}/") for file in code), part
    assert code == code_of("ours, closed form")


def test_a_rival_that_is_put_together_depends_on_all_of_its_parts():
    assert {
        f"benchmarks/rivals/{name}.py" for name in ("stack", "gaussian", "boosting", "trees", "section")
    } <= code_of("stack of three, soft")
    assert "benchmarks/rivals/trees.py" not in code_of("kriging, log, soft")


def test_a_rival_that_is_put_together_otherwise_is_stale(monkeypatch):
    import plan
    import rivals
    from rivals.gaussian import additive
    from rivals.stack import stack
    from rivals.trees import extra_trees

    def settings(fitter):
        monkeypatch.setitem(rivals.FITTERS, "stack of three", fitter)
        plan._code_of_method.cache_clear()
        return plan._code_of_method("stack of three, soft")

    plain, again = (settings(stack([additive, extra_trees])) for _ in range(2))
    logarithmic = settings(stack([rivals.logarithmic(additive), extra_trees]))
    fewer = settings(stack([extra_trees]))
    plan._code_of_method.cache_clear()
    assert plain == again and len({plain, logarithmic, fewer}) == 3


def test_settings_change_with_all_that_a_number_depends_on_and_with_nothing_else():
    from dataclasses import replace

    from plan import Cell

    options = {"seed": 900_000, "style": "voronoi", "size_um": 640.0, "n_genes": 4}
    cell = Cell("phantom", "in distribution", "voronoi 900000", "clean", "kriging, soft", "phantom", options)
    same = [replace(cell, task="parts"), replace(cell, group="other"), replace(cell, align="spots")]
    assert {one.settings for one in same} == {cell.settings}
    other = [
        replace(cell, method="kriging, log, soft, registered"),
        replace(cell, options=options | {"n_genes": 5}),
        replace(cell, disturbance=("stain", 1.0)),
        replace(cell, inputs={"file": "0" * 64}),
        replace(cell, case="holdout"),
        replace(cell, few=False),
    ]
    assert len({cell.settings, *(one.settings for one in other)}) == 1 + len(other)
    moved = replace(cell, method="kriging, soft, registered")
    assert moved.settings != replace(moved, align="spots").settings
