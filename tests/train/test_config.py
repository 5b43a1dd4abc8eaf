"""A training configuration is checked whole before anything is computed: each setting by name, with its range."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from hadmst_sc.section.errors import ContractError
from hadmst_sc.train.config import (
    REQUIREMENTS,
    BankConfig,
    OwnConfig,
    RealConfig,
    SectionKind,
    StudentConfig,
    TrainConfig,
    load_config,
)

PARTS = (TrainConfig, StudentConfig, BankConfig, SectionKind, RealConfig, OwnConfig)
# TOML, and the setting that the message names.
WRONG = {
    "steps = 'x'": "steps",
    "steps = -5": "steps",
    "steps = 1.0": "steps",
    "steps = true": "steps",
    "seed = -1": "seed",
    "seed = 900000": "seed",
    "crop = 63": "crop",
    "crop = 0": "crop",
    "sections = 0": "sections",
    "genes = []": "genes",
    "learning_rate = nan": "learning_rate",
    "learning_rate = 0": "learning_rate",
    "learning_rate = inf": "learning_rate",
    "warmup = -1": "warmup",
    "weight_decay = '0'": "weight_decay",
    "ema = 1.5": "ema",
    "clip_norm = 0": "clip_norm",
    "drop_he = 2": "drop_he",
    "real_share = -0.1": "real_share",
    "mean_share = [0.5]": "mean_share",
    "draw = -1": "draw",
    "adversary = 'much'": "adversary",
    "start_from = 3": "start_from",
    "log_sigma = [1]": "log_sigma",
    "log_sigma = [0.0, -1.0]": "log_sigma",
    "log_sigma = ['a', 'b']": "log_sigma",
    "checkpoint_every = 0": "checkpoint_every",
    "accelerator = 'rocket'": "accelerator",
    "devices = 'all'": "devices",
    "threads = 0": "threads",
    "bank = 'x'": "bank",
    "student = 1": "student",
    "model = []": "model",
    "[bank]\nkinds = [1]": "kinds",
    "[bank]\nkinds = 'Visium'": "kinds",
    "[bank]\nreal = ['a.zarr']": "real",
    "[bank]\ndirectory = '../../../evil'": "directory",
    "[bank]\ndirectory = '/etc'": "directory",
    "[bank]\ndirectory = 'a/../..'": "directory",
    "[bank]\ndirectory = 'C:\\evil'": "directory",
    "[bank]\ndirectory = '..\\evil'": "directory",
    "[bank]\ndirectory = ''": "directory",
    "[student]\ndirectory = '..'": "directory",
    "[student]\nsteps = 0": "steps",
    "[student]\ncrop = 130": "crop",
    "[bank]\nn_phantoms = -1": "n_phantoms",
    "[bank]\nn_workers = 0": "n_workers",
    "[bank]\nhidden_share = [2.0, -1.0]": "hidden_share",
    "[bank]\nhidden_share = 0.2": "hidden_share",
    "[bank]\nwindow = 32": "window",
    "[bank]\nfirst_seed = 950000": "first_seed",
    "[[bank.kinds]]\nsize_um = -1": "size_um",
    "[[bank.kinds]]\nbin_um = 0": "bin_um",
    "[[bank.kinds]]\nspot_um = 1e9": "spot_um",
    "[[bank.kinds]]\nsize_um = 1925.0": "size_um",
    "[[bank.kinds]]\nsize_um = 300.0": "size_um",
    "[[bank.kinds]]\npitch_um = 20.0": "pitch_um",
    "[[bank.kinds]]\nshare = 0": "share",
    "[[bank.real]]\nname = 3": "name",
    "[[bank.real]]\nname = 'a'\nbin_um = '20'": "bin_um",
    "[model]\nnope = 1": "nope",
    "[model]\nwidths = 'abc'": "model",
    "[model]\nwidths = [1000000, 1000000, 1000000]": "model",
    "stepz = 3": "steps",  # the close match
}


def refused(folder, text: str) -> ValueError:
    (folder / "c.toml").write_text(text)
    with pytest.raises(ValueError, match="`") as raised:
        load_config(folder / "c.toml")
    return raised.value


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_setting_is_named(tmp_path, text):
    error = refused(tmp_path, text)
    assert (
        f"`{WRONG[text]}`" in str(error) or f"c.toml.{WRONG[text]}`" in str(error) or f"'{WRONG[text]}'" in str(error)
    )
    assert not isinstance(error, ContractError), error  # one mistake, one problem


@pytest.mark.parametrize("kind", PARTS)
def test_every_setting_has_a_requirement_that_its_default_meets(kind):
    names = {one.name for one in fields(kind)}
    assert REQUIREMENTS[kind].keys() == names
    for one in fields(kind):
        plain = isinstance(one.default, int | float | str) or one.name in ("log_sigma", "hidden_share")
        assert not plain or one.default == "" or REQUIREMENTS[kind][one.name].is_met(one.default), one.name


def test_the_remedy_can_be_pasted(tmp_path):
    for text, name in WRONG.items():
        message = str(refused(tmp_path, text))
        if "Set `" not in message:
            continue
        remedy = message.split("Set `")[1].split("`")[0]
        kept = [line for line in text.splitlines() if not line.startswith(remedy.split(" ")[0])]
        (tmp_path / "c.toml").write_text("\n".join([*kept, remedy]))
        load_config(tmp_path / "c.toml")
        assert remedy.startswith(name), message


def test_all_that_is_wrong_is_reported_at_once_each_with_its_table(tmp_path):
    error = refused(
        tmp_path, "steps = -5\ncrpo = 3\n[bank]\nwindow = 'x'\n[[bank.real]]\nname = ''\n[[bank.real]]\nx = 1"
    )
    assert isinstance(error, ContractError) and len(error.problems) == 6
    text = str(error)
    assert "`c.toml`: `steps`" in text and "`c.toml.bank`: `window`" in text and "`c.toml.bank.real[1]`: `name`" in text
    assert "`c.toml.bank.real[2]` needs ['path', 'image_key']" in text and "Did you mean `crop`?" in text


@pytest.mark.parametrize("content", [b"steps=", b"\xff\xfe", b"a = " + b"[" * 5000, b"\0"])
def test_a_file_that_is_no_toml_is_named(tmp_path, content):
    (tmp_path / "c.toml").write_bytes(content)
    with pytest.raises(ValueError, match=r"`config` needs a TOML file, but c\.toml is not valid: "):
        load_config(tmp_path / "c.toml")


def test_a_large_network_is_refused_before_it_is_built(tmp_path):
    error = refused(
        tmp_path, "[model]\nwidths = [4096, 4096, 4096]\nstudent = [4096, 4096, 4096]\nencoder = [4096, 4096]"
    )
    assert "GB of memory" in str(error) or "describes a network that cannot be built" in str(error)


def test_what_is_written_in_full_is_read_as_it_is(tmp_path):
    plain = {name: value for name, value in TrainConfig().to_dict().items() if not isinstance(value, dict)}
    (tmp_path / "c.toml").write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in plain.items()))
    assert load_config(tmp_path / "c.toml") == TrainConfig()
