"""Weights: damage is noticed, code is never run, and the model that loads is the one that was saved."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import resource
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hadmst_sc.models import HadmstModel, ModelSpec
from hadmst_sc.models.diffusion import INPUTS, N_CHANNELS
from hadmst_sc.models.weights import BUNDLED, MAX_CARD, bundled_models, load_model, read_card, save_model, self_test
from hadmst_sc.section.features import N_BASE


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


def test_a_card_far_larger_than_a_card_is_not_read(saved):
    card = saved.with_suffix(".json")
    card.write_text(card.read_text() + " " * MAX_CARD)
    with pytest.raises(ValueError, match=r"m\.json is not a card"):
        load_model(saved)


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("change", ["swapped", "missing", "renamed"])
def test_weights_trained_on_other_inputs_are_refused(saved, kind, change):
    card = read_card(saved)
    names = card["inputs"][kind]
    card["inputs"][kind] = {
        "swapped": [names[1], names[0], *names[2:]],
        "missing": names[:-1],
        "renamed": ["other", *names[1:]],
    }[change]
    saved.with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=rf"m\.safetensors was trained on {kind} .*Train the weights again"):
        load_model(saved)


def test_every_input_has_a_name_of_its_own():
    spec = ModelSpec()
    assert {kind: len(set(names)) for kind, names in INPUTS.items()} == {
        "features": N_BASE,
        "context": spec.context,
        "channels": N_CHANNELS,
        "token": spec.token,
    }


def test_the_bundled_card_names_its_inputs_and_a_card_of_the_format_before_is_read(saved):
    assert read_card(BUNDLED / "default.safetensors")["inputs"] == INPUTS
    card = read_card(saved) | {"format": 2}
    del card["inputs"]
    saved.with_suffix(".json").write_text(json.dumps(card))
    assert load_model(saved).name == "m"
    saved.with_suffix(".json").write_text(json.dumps(card | {"format": 3}))
    with pytest.raises(ValueError, match="was trained on features"):
        load_model(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 99}'])
def test_a_broken_card_is_named(saved, text):
    saved.with_suffix(".json").write_text(text)
    with pytest.raises(ValueError, match=r"m\.json is not a card"):
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


@pytest.mark.parametrize(
    "model",
    ["", ".", "..", "/", "nonesuch.safetensors", "a\0b", "x" * 5000, "/dev/null", 3, None, [1], True, b"default"],
)
def test_what_is_no_model_is_one_error_that_lists_the_bundled_ones(model):
    kind = FileNotFoundError if isinstance(model, str) else TypeError
    with pytest.raises(kind, match=r"^`model` needs a bundled name \(\['default'\]\).*Try `model='default'`\.$"):
        load_model(model)


def test_a_folder_and_a_loop_of_links_are_no_model(tmp_path):
    for name in ("a.safetensors", "a.json"):
        (tmp_path / name).symlink_to(tmp_path / name)
    for place in (tmp_path, tmp_path / "a.safetensors"):
        with pytest.raises(FileNotFoundError, match="`model` needs a bundled name"):
            load_model(place)


def rewritten(saved, tensors=None, **card):
    """The files with other tensors or another card, and the right sha256: whoever changes one can change the other."""
    if tensors is not None:
        save_file(tensors, saved)
    record = json.loads(saved.with_suffix(".json").read_text()) | {
        "sha256": hashlib.sha256(saved.read_bytes()).hexdigest()
    }
    saved.with_suffix(".json").write_text(json.dumps(record | card))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(saved, value):
    tensors = load_file(saved)
    tensors["unet.head.weight"].view(-1)[7] = value
    rewritten(saved, tensors)
    with pytest.raises(ValueError, match=r"`model`: the weights of m\.safetensors contain NaN or infinite"):
        load_model(saved)


def test_a_file_that_computes_something_else_than_its_card_says_is_refused(saved):
    rewritten(saved, {name: 1.01 * tensor for name, tensor in load_file(saved).items()})
    with pytest.raises(ValueError, match=r"`model`: m\.safetensors does not reproduce the outputs in its card"):
        load_model(saved)


@pytest.mark.parametrize(
    "spec",
    [
        {"widths": [10**9] * 3},
        {"widths": 8},
        {"widths": [8, 8]},
        {"embed": -1},
        {"embed": "64"},
        {"sigma_data": float("nan")},
        {"align": 3},
        {"halo": 30},
        {"context": 39},
        {"widths": [True, 8, 8]},
        None,
        [],
    ],
)
def test_a_spec_that_no_network_can_have_is_refused(saved, spec):
    whole = read_card(saved)["spec"] | spec if isinstance(spec, dict) else spec
    rewritten(saved, spec=whole)
    with pytest.raises(ValueError, match=r"`model`: m\.safetensors does not hold the network that its card describes"):
        load_model(saved)


@pytest.mark.parametrize("change", ["double", "half", "left out", "one more", "transposed"])
def test_tensors_that_are_not_those_of_the_network_are_refused(saved, change):
    tensors = load_file(saved)
    weight = tensors.pop("unet.head.weight")
    others = {"double": weight.double(), "half": weight.half(), "transposed": weight.transpose(0, 1).contiguous()}
    if change in others:
        tensors["unet.head.weight"] = others[change]
    elif change == "one more":
        tensors |= {"unet.head.weight": weight, "more": torch.zeros(3)}
    rewritten(saved, tensors)
    with pytest.raises(ValueError, match="does not hold the network"):
        load_model(saved)


@pytest.mark.parametrize("text", ["[" * 200_000 + "]" * 200_000, '{"format": ' * 100_000, "\xff", " " * 20_000_000])
def test_a_card_that_is_too_deep_too_long_or_no_text_is_named(saved, text):
    saved.with_suffix(".json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"`model`: m\.json is not a card"):
        load_model(saved)


@pytest.mark.parametrize("numbers", [[], [0.0], "abc", None, [[1.0]] * 47, [float("nan")] * 48, {"a": 1}])
def test_a_self_test_of_other_numbers_is_refused(saved, numbers):
    rewritten(saved, self_test=numbers)
    with pytest.raises(ValueError, match=r"`model`: m\.safetensors does not reproduce the outputs in its card"):
        load_model(saved)


def test_a_network_of_absurd_size_is_never_allocated(saved):
    """One of its convolutions would take 600 MB."""
    rewritten(saved, spec=read_card(saved)["spec"] | {"widths": [4096, 4096, 4096]})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="names or shapes"):
        load_model(saved)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_a_loaded_model_is_copied_rather_than_changed():
    ours = load_model("default")
    assert load_model(ours) is ours
    theirs = copy.deepcopy(ours).double().train()
    found = load_model(theirs)
    assert theirs.training and theirs.unet.head.weight.dtype == torch.float64
    assert self_test(found) <= 1e-4 and not found.training
    with torch.no_grad():
        theirs.unet.head.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="contain NaN or infinite"):
        load_model(theirs)
