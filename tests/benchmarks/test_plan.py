"""The declaration can be run: every name in it exists, and no weights have seen what they are scored on."""

from __future__ import annotations

from collections import Counter

import pytest


@pytest.fixture(scope="module")
def declared():
    from plan import load

    return load()


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_every_name_exists(declared, profile):
    from cases import CASES
    from disturb import DISTURBANCES
    from methods import methods
    from plan import cells, weights_path

    known = methods()
    references = {name for task in declared["tasks"].values() for name in task.get("references", [])}
    for cell in cells(declared, profile):
        assert cell.method in known or cell.method in references
        assert cell.case in CASES
        assert cell.disturbance is None or cell.disturbance[0] in DISTURBANCES
        assert weights_path(cell.weights).is_file()
        assert all(len(digest) == 64 for digest in cell.inputs.values())


def test_every_task_has_all_core_methods_and_two_published_ones(declared):
    from plan import cells

    core = set(declared["methods"]["core"]) | set(declared["methods"]["peers"])
    assert len(core) >= 14 and len(declared["methods"]["peers"]) >= 2
    by_task: dict[str, set[str]] = {}
    for cell in cells(declared, "full"):
        by_task.setdefault(cell.task, set()).add(cell.method)
    assert all(core <= methods for methods in by_task.values())


def test_real_sections_are_scored_with_weights_of_the_other_tissue(declared):
    from plan import cells

    for cell in cells(declared, "full"):
        if cell.inputs:
            breast = any("breast" in file or "her2st" in file for file in cell.inputs)
            assert cell.weights == f"training/{'brain' if breast else 'breast'}_only.safetensors", cell.key


def test_test_phantoms_are_never_those_of_training_nor_shared_between_tasks(declared):
    from plan import cells

    seeds = {(cell.task, cell.options["seed"]) for cell in cells(declared, "full") if "seed" in cell.options}
    assert min(seed for _, seed in seeds) >= 900_000
    assert max(Counter(seed for _, seed in seeds).values()) == 1


def test_quick_is_a_small_part_with_smaller_sections(declared):
    from plan import cells

    quick, full = cells(declared, "quick"), cells(declared, "full")
    assert {cell.task for cell in quick} == {cell.task for cell in full}
    assert len(quick) < len(full) / 4
    assert all(cell.options.get("n_genes", 0) <= 50 for cell in quick)


def test_two_sections_of_one_name_are_refused(declared):
    from plan import cells

    task = dict(declared["tasks"]["phantom"])
    twice = declared | {"tasks": {"phantom": task | {"sets": [task["sets"][0]] * 2}}}
    with pytest.raises(ValueError, match="comes twice"):
        cells(twice, "full")
