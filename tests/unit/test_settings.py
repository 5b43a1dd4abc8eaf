"""Settings: the key of a run is complete, problems are reported at once, and what is recorded is plain."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import dataclass, fields, replace
from inspect import signature
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import typer
from scipy import sparse
from typer.testing import CliRunner

import hadmst_sc as hd
from hadmst_sc.cli import options_of
from hadmst_sc.inference.settings import SETTINGS, Settings, SettingsArguments, arguments_of, setting
from hadmst_sc.io.read import read_observation
from hadmst_sc.models.weights import load_model
from hadmst_sc.section.abundances import SPOTS, SpotsArguments
from hadmst_sc.section.arguments import SECTION, SectionArguments, number, whole
from hadmst_sc.section.cells import Cells
from hadmst_sc.section.errors import ContractError, Problems

FEATURES = np.zeros((2, 8, 8), np.float32)
# Another value of every setting; a new field needs one here, else `test_every_setting_has_another_value` fails.
OTHER = {
    "model": None,
    "with_std": False,
    "n_samples": 2,
    "n_steps": 3,
    "n_genes": 5,
    "n_metagenes": 8,
    "consistency": "hard",
    "align": "spots",
    "gate": False,
    "features": FEATURES,
    "cells": Cells("nuclei", np.arange(2), sparse.csr_array(np.eye(2, 64)), areal=True),
    "random_state": 1,
    "device": "cpu",
    "window": 64,
    "batch_size": 2,
    "n_jobs": 1,
    "client": object(),
}
SAME = {"device", "window", "batch_size", "n_jobs", "client"}  # results do not depend on these


def test_every_setting_has_another_value():
    assert OTHER.keys() == {one.name for one in fields(Settings)}
    assert {one.name for one in fields(Settings) if not one.metadata["maps"]} == SAME


def test_every_default_meets_its_requirement():
    for one in fields(Settings):
        requirement = one.metadata["requirement"]
        assert (one.name in ("features", "client")) if requirement is None else requirement.is_met(one.default)


@dataclass(frozen=True, eq=False)
class More(Settings):
    """Settings with one more."""

    sharpness: int = setting(1, whole(1), "Sharpness of the maps. More than this sentence is for docstrings.")


def test_a_new_setting_is_in_the_key_the_provenance_the_check_and_the_help_of_the_command_line():
    assert More(sharpness=2).key() != More().key()
    assert More(model=None, sharpness=2).loaded().record()["sharpness"] == 2
    problems = Problems("x")
    More(sharpness=0).check(problems)
    assert "`sharpness` needs a whole number of at least 1, but is 0. Pass `sharpness=1`" in problems.found[0][1]
    app, seen = typer.Typer(), {}

    @app.command()
    @options_of(arguments_of(More))
    def command(**given: object) -> None:
        seen.update(given)

    shown = " ".join(re.findall(r"[\w.-]+", CliRunner().invoke(app, ["--help"]).output))  # without the box
    assert "--sharpness" in shown and "Sharpness of the maps. More than this sentence is for docstrings." in shown
    assert CliRunner().invoke(app, ["--sharpness", "3"]).exit_code == 0 and seen["sharpness"] == 3


def test_type_checkers_know_the_arguments_as_they_are():
    for known, arguments in ((SettingsArguments, SETTINGS), (SectionArguments, SECTION), (SpotsArguments, SPOTS)):
        annotations = {name: one.__forward_arg__ for name, one in known.__annotations__.items()}
        assert annotations == {name: one.kind for name, one in arguments.items()}
    of_reading = signature(read_observation).parameters
    assert {name: one.default for name, one in SECTION.items()} == {name: of_reading[name].default for name in SECTION}


def test_an_unknown_argument_is_named():
    with pytest.raises(TypeError, match=r"superresolve\(\) .*'n_metagene'. Did you mean `n_metagenes`\?"):
        hd.tl.superresolve(None, "he", n_metagene=3)
    with pytest.raises(TypeError, match=r"register\(\) missing a required argument: 'image_key'"):
        hd.pp.register(None)


def test_a_section_in_place_of_an_observation_gets_the_way_to_one():
    with pytest.raises(TypeError, match=r"`obs` needs an Observation, .*read_observation\(sdata, image_key\)"):
        hd.tl.predict(hd.datasets.phantom(n_genes=2, size_um=600.0))


@pytest.mark.parametrize("name", OTHER)
def test_the_key_changes_with_every_setting_that_changes_the_maps(name):
    changed = replace(Settings(), **{name: OTHER[name]})
    assert (changed.key() == Settings().key()) == (name in SAME)
    assert json.loads(json.dumps(changed.key())) == changed.key()


def test_the_key_knows_what_arrays_and_weights_hold_and_not_what_they_are_called():
    model = load_model("default")
    with_maps, of_model = Settings(features=FEATURES), Settings(model=model)
    assert with_maps.key() == Settings(features=FEATURES.copy()).key()
    assert with_maps.key() != Settings(features=FEATURES + 1).key()
    before = of_model.key()
    assert before == Settings(model=model).key()
    with torch.no_grad():
        next(model.parameters()).add_(1)
    assert before != of_model.key()
    made = Settings(features=lambda he, um: FEATURES)
    assert made.key() != made.key()  # what a callable does cannot be compared


def test_defaults_are_those_of_superresolve():
    defaults = {name: one.default for name, one in signature(hd.tl.superresolve).parameters.items()}
    resolved = {"n_steps": 1}  # for None
    for one in fields(Settings):
        if one.name in defaults:
            assert getattr(Settings(), one.name) == resolved.get(one.name, defaults[one.name])


def test_scalars_of_numpy_are_those_of_python():
    settings = Settings(n_samples=np.int64(3), gate=np.bool_(False), random_state=np.uint8(7), align=np.str_("spots"))
    problems = Problems("x")
    settings.check(problems)
    assert not problems
    record = settings.loaded().record()
    assert [type(record[name]) for name in ("n_samples", "gate", "random_state", "align")] == [int, bool, int, str]
    assert json.loads(json.dumps(record)) == record and record.keys() == OTHER.keys() - {"client"}


def test_numbers_of_numpy_are_checked_without_a_warning():
    """A bound that float32 cannot hold warned, which is an error where the caller wants it to be one."""
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert number(0).is_met(np.float32(0.5)) and not number(0).is_met(np.float32(-1))


def test_all_that_is_wrong_is_reported_at_once_with_the_section_and_a_value_that_can_be_passed():
    sdata = hd.datasets.phantom(n_genes=2, size_um=600.0)
    sdata["table"].X.data[0] = -1
    wrong = {"n_metagenes": 4.5, "n_jobs": True, "align": 1, "bin_um": "10", "copy": 1}
    with pytest.raises(ContractError) as raised:
        hd.tl.superresolve(sdata, "phantom_full_image", **wrong)
    problems = raised.value.problems
    assert [sum(f"`{name}` needs" in one for one in problems) for name in wrong] == [1] * len(wrong)
    assert len(problems) == len(wrong) + 1 and "tables/table" in problems[-1]
    assert all("Pass `" in one for one in problems[:-1])


def test_an_argument_is_named_as_the_function_calls_it():
    obs = hd.io.read_observation(hd.datasets.phantom(n_genes=2, size_um=600.0), "phantom_full_image", bin_um=20.0)
    with pytest.raises(ValueError, match="`gene_chunk` needs a whole number of at least 1, or None, but is 0"):
        hd.tl.predict(obs, model=None, gene_chunk=0)


def test_the_provenance_holds_every_setting():
    obs = hd.io.read_observation(hd.datasets.phantom(n_genes=2, size_um=600.0), "phantom_full_image", bin_um=20.0)
    made = hd.tl.predict(obs, model=None, align=False, random_state=5).provenance
    assert made.keys() >= OTHER.keys() - {"client"} and made["random_state"] == 5 and made["align"] is False


@pytest.mark.parametrize("other", [{"model": None}, {"n_metagenes": 2}])
def test_samples_are_of_single_genes_from_a_network(other):
    problems = Problems("x")
    Settings(n_samples=2, **other).check(problems)
    with pytest.raises(ValueError, match="`n_samples=2`"):
        problems.raise_if_any()


@pytest.mark.parametrize(("genes", "spots", "most"), [(4, 50, 3), (50, 4, 4)])
def test_metagenes_are_fewer_than_genes_and_no_more_than_spots(genes, spots, most):
    section = SimpleNamespace(genes=range(genes), spots=range(spots))
    for n, refused in ((most, False), (most + 1, True)):
        problems = Problems("")
        Settings(n_metagenes=n).check_with(section, problems)
        assert bool(problems) == refused


def test_no_number_lies_beyond_all_numbers():
    met = [number(0.0).is_met(value) for value in (0.0, 1, np.nan, np.inf, -1e-300)]
    assert met == [True, True, False, False, False]
