"""Weights: damage is noticed, code is never run, and the model that loads is the one that was saved."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pytest
import torch

from hadmst_sc.models import HadmstModel, ModelSpec
from hadmst_sc.weights import BUNDLED, bundled_models, load_model, read_card, save_model, self_test


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = HadmstModel(ModelSpec(widths=(8, 8, 8), student=(8, 8, 8)))
    torch.nn.init.normal_(model.unet.head.weight)
    save_model(model, tmp_path / "m.safetensors", card={"note": "test"})
    return tmp_path / "m.safetensors"


def test_bundled_model_passes_its_self_test():
    assert "default" in bundled_models()
    assert self_test(load_model("default")) <= 1e-4


def test_bundled_files_are_small():
    assert sum(path.stat().st_size for path in BUNDLED.iterdir()) < 20e6


def test_what_is_loaded_is_what_was_saved(saved):
    card = read_card(saved)
    assert card["note"] == "test" and card["n_parameters"] > 1000
    assert self_test(load_model(saved), card) <= 1e-6  # the layout in memory may round differently


def test_every_single_bit_flip_is_refused(saved):
    data, rng = saved.read_bytes(), np.random.default_rng(0)
    for position in rng.integers(0, len(data) * 8, 200):
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << (position % 8)
        saved.write_bytes(damaged)
        with pytest.raises(ValueError, match="sha256"):
            load_model(saved)


@pytest.mark.parametrize("tenth", range(10))
def test_truncation_is_refused(saved, tenth):
    data = saved.read_bytes()
    saved.write_bytes(data[: len(data) * tenth // 10])
    with pytest.raises(ValueError, match="sha256"):
        load_model(saved)


def test_another_architecture_is_refused(saved):
    card = read_card(saved)
    card["spec"]["widths"] = [8, 8, 12]
    saved.with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match="does not hold the network"):
        load_model(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 99}'])
def test_a_broken_card_is_named(saved, text):
    saved.with_suffix(".json").write_text(text)
    with pytest.raises(ValueError, match=r"m\.json is no card"):
        load_model(saved)


def test_self_test_notices_changed_parameters(saved):
    model = load_model(saved)
    with torch.no_grad():
        model.unet.head.weight.mul_(1.01)
    with pytest.raises(ValueError, match="self-test deviates"):
        self_test(model, read_card(saved))


def test_a_pickle_is_refused_and_does_not_run(saved, tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    for suffix in (".pt", ".ckpt", ".npz", ".safetensors"):
        bad = tmp_path / f"bad{suffix}"
        bad.write_bytes(pickle.dumps(Payload()))
        shutil.copy(saved.with_suffix(".json"), bad.with_suffix(".json"))
        with pytest.raises(ValueError, match="sha256"):
            load_model(bad)
    assert not (tmp_path / "touched").exists()


def test_an_unknown_model_lists_the_bundled_ones():
    with pytest.raises(FileNotFoundError, match=r"'default'.*nonesuch"):
        load_model("nonesuch")
