"""The declaration can be run: every name in it exists, and no weights have seen what they are scored on."""

from __future__ import annotations

import json
from collections import Counter

import pytest

SWITCHED = {"parts", "draws"}  # tasks of ours alone


@pytest.fixture(scope="module")
def declared():
    from plan import load

    return load()


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_every_name_exists(declared, profile):
    from cases import CASES
    from disturb import DISTURBANCES
    from methods import method
    from peers import PEERS
    from plan import cells, weights_path

    references = {name for task in declared["tasks"].values() for name in task.get("references", [])}
    made = set()
    for cell in cells(declared, profile):
        assert cell.reference == (cell.method in references)
        made |= set() if cell.reference else {cell.method}
        assert cell.case in CASES
        assert cell.disturbance is None or cell.disturbance[0] in DISTURBANCES
        assert weights_path(cell.weights).is_file()
        assert all(len(digest) == 64 for digest in cell.inputs.values())
    for name in made:
        assert callable(method(name))
    for task in declared["tasks"].values():
        for name, disturbances in task.get("only", {}).items():
            assert name in made or profile == "quick"
            assert set(disturbances) <= set(task["disturbances"])
    assert profile == "quick" or made & PEERS.keys()


def test_every_option_of_a_section_is_one_of_its_case(declared):
    from inspect import Parameter, signature

    from cases import CASES
    from plan import cells

    from hadmst_sc.phantom.simulate import simulate

    forwarded = {*signature(simulate).parameters, "markers", "published"}
    for profile in ("quick", "full"):
        for cell in cells(declared, profile):
            parameters = signature(CASES[cell.case]).parameters
            anything = any(one.kind is Parameter.VAR_KEYWORD for one in parameters.values())
            assert set(cell.options) <= parameters.keys() | (forwarded if anything else set()), cell.key
            needed = {one.name for one in parameters.values() if one.default is Parameter.empty}
            assert needed - {"options"} <= set(cell.options), cell.key


def test_every_task_scores_ours_beside_rivals_and_most_beside_published_tools(declared):
    from plan import cells

    always = {"linear", "GP on H&E + space, log, soft", "extra trees + kriging, log, soft"}
    by_task: dict[str, set[str]] = {}
    for cell in cells(declared, "full"):
        by_task.setdefault(cell.task, set()).add(cell.method)
    for task, methods in by_task.items():
        assert "ours" in methods or task == "draws"
        assert always <= methods or task in SWITCHED, task
        assert task not in SWITCHED or all(name.startswith("ours") for name in methods)
    with_peers = {task for task, methods in by_task.items() if methods & set(declared["methods"]["peers"])}
    assert with_peers >= {"hr_real", "hr_sim", "holdout", "phantom", "panel", "domains"}


def test_a_switch_of_alignment_is_asked_only_where_the_image_is_displaced_or_bent(declared):
    from plan import cells

    asked: dict[str, set[str]] = {}
    for cell in cells(declared, "full"):
        if cell.task == "robustness":
            asked.setdefault(cell.method, set()).add(cell.point)
    displaced = {"clean", "misregistration_um=15", "misregistration_um=30", "misregistration_um=60", "warp_um=15"}
    assert asked["ours, no registration"] == displaced and asked["ours, no offsets"] == {"clean", "warp_um=15"}
    assert asked["ours"] == asked["linear"] > displaced


def test_rivals_that_use_the_image_are_given_it_registered_too(declared):
    from plan import cells

    registered: dict[tuple[str, str], set[str]] = {}
    plain: dict[tuple[str, str], set[str]] = {}
    for cell in cells(declared, "full"):
        assert not (cell.registered and (cell.ours or cell.reference)), cell.key
        into = registered if cell.registered else plain
        into.setdefault((cell.task, cell.group), set()).add(cell.method.removesuffix(", registered"))
    assert {"hr_real", "hr_sim", "holdout", "blocks", "phantom", "robustness", "domains"} <= {t for t, _ in registered}
    for place, names in registered.items():
        assert names <= plain[place]
        blind = {"zero", "nearest", "linear", "kriging", "kriging, log, soft"} & plain[place]
        if place[0] == "hr_real":  # the spots move there, and that is no image
            assert names & blind == blind - {"zero"}
        else:
            assert not names & blind
        assert {"GP on H&E + space, log, soft", "extra trees + kriging, log, soft"} <= names, place


def test_intervals_are_over_sections_where_there_are_three(declared):
    from pairs import LEAST_SECTIONS
    from plan import cells

    sections: dict[tuple[str, str], set[str]] = {}
    few: dict[tuple[str, str], set[bool]] = {}
    for cell in cells(declared, "full"):
        sections.setdefault((cell.task, cell.group), set()).add(cell.section)
        few.setdefault((cell.task, cell.group), set()).add(cell.few)
    assert all(few[place] == {len(names) < LEAST_SECTIONS} for place, names in sections.items())
    assert {True, False} == {one for values in few.values() for one in values}


def test_real_sections_are_scored_with_weights_of_the_other_tissue(declared):
    from plan import TRAINED, cells

    for profile in ("quick", "full"):
        for cell in cells(declared, profile):
            if cell.inputs and TRAINED not in cell.method:  # those were trained on phantoms alone
                breast = any("breast" in file or "her2st" in file for file in cell.inputs)
                assert cell.weights == f"training/{'brain' if breast else 'breast'}_only.safetensors", cell.key


def test_every_section_that_is_read_has_its_files_declared(declared):
    from plan import cells

    for cell in cells(declared, "full"):
        assert cell.inputs or "seed" in cell.options, cell.key


def test_test_phantoms_are_never_those_of_training_nor_shared_between_tasks(declared):
    from plan import cells

    seeds = {(cell.task, cell.options["seed"]) for cell in cells(declared, "full") if "seed" in cell.options}
    assert min(seed for _, seed in seeds) >= 900_000
    assert max(Counter(seed for _, seed in seeds).values()) == 1


def test_quick_is_a_small_part_with_smaller_sections(declared):
    from plan import cells

    quick, full = cells(declared, "quick"), cells(declared, "full")
    assert {cell.task for cell in quick} == {cell.task for cell in full}
    assert len(quick) < len(full) / 20
    assert all(cell.options.get("n_genes", 0) <= 50 for cell in quick)


def test_two_sections_of_one_name_are_refused(declared):
    from plan import cells

    task = dict(declared["tasks"]["phantom"])
    twice = declared | {"tasks": {"phantom": task | {"sets": [task["sets"][0]] * 2}}}
    with pytest.raises(ValueError, match="comes twice"):
        cells(twice, "full")


def test_networks_of_other_training_runs_are_pairs_and_have_their_own_weights(declared):
    from plan import TRAINED, cells

    names = declared["methods"]["adversary"]
    assert {name.partition(TRAINED)[2] for name in names} == set(declared["trained"])
    arms = {(arm, seed) for arm, seed in (name.split() for name in declared["trained"])}
    assert arms == {(arm, str(seed)) for arm in ("with", "without") for seed in range(3)}
    for cell in cells(declared, "full"):
        trained = cell.method.partition(TRAINED)[2]
        assert not trained or cell.weights == declared["trained"][trained]


def test_networks_with_and_without_the_adversary_differ_in_it_alone_and_saw_no_real_section(declared, root):
    def card(weights):
        return json.loads((root / weights).with_suffix(".json").read_text())

    cards = {name: card(weights) for name, weights in declared["trained"].items()}
    for name, one in cards.items():
        first = card(one["training"]["start_from"])
        assert not one["sections"] and not any(each["training"]["bank"]["real"] for each in (one, first))
        assert one["start_sha256"] == first["sha256"]
        assert bool(one["training"]["adversary"]) == name.startswith("with ")
    for seed in range(3):
        arms = [cards[f"{arm} {seed}"] for arm in ("with", "without")]
        with_it, without = (one["training"] | {"adversary": 0.0} for one in arms)
        assert with_it == without and with_it["seed"] == seed


def test_weights_of_a_section_have_not_seen_its_tissue():
    import beads
    import given_cells
    import plan

    declared = plan.load()
    breast = {"brain_only.safetensors"}, ("xenium_breast_crop", "xenium_breast_dapi", "her2st_C3")
    brain = {"breast_only.safetensors"}, ("xenium_mouse_brain", "visium_mouse_brain", "st_mob_1", "visium_dlpfc_151673")
    for names, sections in (breast, brain):
        assert {plan.weights_of(section).name for section in sections} == names
    asked = {one["section"] for one in given_cells.SETS.values()} | set(given_cells.SECTIONS)
    asked |= set(declared["measurements"]["beads"]["options"]["sections"])
    assert all(plan.weights_of(section).is_file() for section in asked) and beads.SIMULATED
