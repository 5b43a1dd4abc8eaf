"""What was kept of a stage comes back to the bit, or is computed again."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hadmst_sc.distillation.components import Panel, components
from hadmst_sc.inference import prepare
from hadmst_sc.inference.kept import Kept, packed, unpacked
from hadmst_sc.phantom.simulate import simulate

FOUND = {"maps": np.arange(6.0).reshape(2, 3).T, "name": "registration", "share": 0.1, "none": None}


def never() -> dict:
    pytest.fail("computed again")


@pytest.fixture
def obs():
    return simulate(920_000, size_um=800.0, n_genes=4, augment=False, depth=(5.0, 40.0)).observation


@pytest.fixture
def kept(tmp_path) -> Kept:
    kept = Kept(tmp_path / "stages", "run")
    kept("stage", lambda: FOUND)
    return kept


def check(found: dict) -> None:
    np.testing.assert_array_equal(found["maps"], FOUND["maps"])
    assert {name: found[name] for name in ("name", "share", "none")} == {
        "name": "registration",
        "share": 0.1,
        "none": None,
    }


def test_a_stage_is_made_once(kept):
    assert "stage" in kept and "other" not in kept
    check(kept("stage", never))
    assert [file.name for file in kept.folder.iterdir()] == ["stage.npz"]


def test_without_a_folder_nothing_is_kept():
    calls = []
    for _ in range(2):
        Kept()("stage", lambda: (calls.append(1), FOUND)[1])
    assert len(calls) == 2 and "stage" not in Kept()


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def one_bit(content: bytes) -> bytes:
    middle = content.index(np.float64(5).tobytes())
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [truncated, one_bit, lambda _: b"", lambda _: b"no archive"])
def test_a_damaged_file_is_ignored_with_a_warning_and_replaced(kept, caplog, damage):
    file = kept.folder / "stage.npz"
    file.write_bytes(damage(file.read_bytes()))
    check(kept("stage", lambda: FOUND))
    assert "stage.npz is ignored, and computed again" in caplog.text
    check(kept("stage", never))


def test_a_file_of_another_run_is_ignored(kept, caplog):
    check(Kept(kept.folder, "another")("stage", lambda: FOUND))
    assert "it belongs to another run" in caplog.text


def test_a_file_with_objects_is_not_loaded(kept, caplog):
    described = json.dumps({"key": "run", "facts": {}})
    np.savez(kept.folder / "stage.npz", described=described, maps=np.array([{}], object))
    check(kept("stage", lambda: FOUND))
    assert "is ignored" in caplog.text


def test_a_stage_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch, caplog):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hadmst_sc.inference.kept.np.savez", full)
    check(Kept(tmp_path / "stages", "run")("stage", lambda: FOUND))
    assert "cannot be written" in caplog.text and not list((tmp_path / "stages").iterdir())


@pytest.mark.parametrize("second_look", [True, False])
def test_components_come_back_to_the_bit_in_the_same_layout(obs, tmp_path, second_look):
    section = components(obs, Panel(obs.counts, obs.measurement), second_look=second_look)
    Kept(tmp_path, "run")("distilled", lambda: packed(section))
    again = unpacked(Kept(tmp_path, "run")("distilled", never))
    for ours, theirs in zip(packed(section).items(), packed(again).items(), strict=True):
        assert ours[0] == theirs[0]
        np.testing.assert_array_equal(*(np.asarray(one[1]) for one in (ours, theirs)))
        assert np.asarray(ours[1]).dtype == np.asarray(theirs[1]).dtype
        assert np.asarray(ours[1]).strides == np.asarray(theirs[1]).strides  # products depend on it
    assert (section.stack is None) == (again.stack is None) == (not second_look)
    assert again.spread.shape == section.spread.shape


def test_the_last_section_is_registered_once_and_any_other_again(obs, monkeypatch):
    calls, plain = [], prepare.estimate_alignment
    monkeypatch.setattr(prepare, "estimate_alignment", lambda *given, **how: (calls.append(1), plain(*given, **how))[1])
    prepare._last.clear()
    he = prepare.he_features(obs)
    first = prepare.registration(obs, he)
    assert prepare.registration(obs.subset_genes(np.arange(4)), he) == first and len(calls) == 1  # equal, not the same
    prepare.registration(obs.subset_genes(np.arange(3)), he)
    assert len(calls) == 2 and len(prepare._last) == 1
