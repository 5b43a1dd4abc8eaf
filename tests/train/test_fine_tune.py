"""Fine-tuning from Python: what is wrong is named before anything is made, and the weights say where they come from."""

from __future__ import annotations

import pytest
import torch

import hadmst_sc as hd
from hadmst_sc.models.weights import read_card
from hadmst_sc.phantom.simulate import simulate
from hadmst_sc.section.errors import ContractError


@pytest.fixture(scope="module")
def obs():
    return simulate(7, n_genes=12, size_um=1600.0, bin_um=20.0, misregistration_um=0.0).observation


@pytest.mark.slow
def test_weights_are_trained_further_and_their_card_says_from_what(obs, tmp_path):
    threads = torch.get_num_threads()
    model = hd.train.fine_tune(obs, output=tmp_path, steps=2, n_phantoms=1)
    assert torch.get_num_threads() == threads
    bundled = hd.models.load_model("default")
    same = [torch.equal(one, bundled.state_dict()[name]) for name, one in model.state_dict().items()]
    assert not all(same)
    card = read_card(tmp_path / "model.safetensors")
    assert card["start_sha256"] == bundled.sha256 and card["training"]["steps"] == 2
    assert list(card["sections"].values()) == [f"{len(obs.spots):,} spots, {12} of 12 genes usable"]
    again = hd.models.load_model(tmp_path / "model.safetensors")
    assert all(torch.equal(one, again.state_dict()[name]) for name, one in model.state_dict().items())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "`steps` needs a whole number"),
        ({"n_phantoms": 1.5}, "`n_phantoms` needs a whole number"),
        ({"n_jobs": 0}, "`n_jobs` needs"),
        ({"random_state": -1}, "`random_state` needs"),
        ({"resume": 1}, "`resume` needs True or False"),
        ({"output": None}, "`output` needs a folder"),
        ({"output": __file__}, "`output` needs a folder"),
        ({"model": None}, "`model` needs a bundled name or a path"),
    ],
)
def test_wrong_arguments_are_named(obs, tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        hd.train.fine_tune(obs, **{"output": tmp_path / "none"} | wrong)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("sections", [[], [None], "section.zarr", None, hd.datasets.phantom(n_genes=2, size_um=600.0)])
def test_what_is_no_section_gets_the_way_to_one(sections, tmp_path):
    with pytest.raises(TypeError, match=r"`sections` needs observations .*read_observation"):
        hd.train.fine_tune(sections, output=tmp_path)


def test_all_sections_that_cannot_be_trained_on_are_named(obs, tmp_path):
    few = [obs.subset_spots(range(10)), obs.subset_spots(range(12))]
    with pytest.raises(ContractError, match="2 problems"):
        hd.train.fine_tune(few, output=tmp_path, n_phantoms=1)


def test_weights_that_are_not_there_are_named(obs, tmp_path):
    with pytest.raises(FileNotFoundError, match="`model` needs a bundled name"):
        hd.train.fine_tune(obs, output=tmp_path / "none", model="nonesuch")
    assert not (tmp_path / "none").exists()
