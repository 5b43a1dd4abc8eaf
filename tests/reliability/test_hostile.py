"""Hostile files: headers of weights changed at will end in our error or a clean load, and nothing runs."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from hadmst_sc import datasets
from hadmst_sc.cli import app
from hadmst_sc.models import HadmstModel, ModelSpec
from hadmst_sc.models.weights import load_model, save_model

N_MUTATED = 2000


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    spec = ModelSpec(widths=(4, 4, 4), student=(4, 4, 4), student_branches=(2, 1), encoder=(4, 2), alignment=4, embed=8)
    path = tmp_path_factory.mktemp("weights") / "m.safetensors"
    save_model(HadmstModel(spec), path, card={})
    return path


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """The file with some bytes of its header changed, taken out or put in; its stated length is right, or not."""
    (length,) = struct.unpack("<Q", data[:8])
    header, body = bytearray(data[8 : 8 + length]), data[8 + length :]
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(header)))
        kind = rng.integers(4)
        if kind == 0:
            header[at] = int(rng.integers(256))
        elif kind == 1:
            del header[at : at + int(rng.integers(1, 9))]
        elif kind == 2:
            header[at:at] = rng.bytes(int(rng.integers(1, 9)))
        else:
            digits = [i for i, byte in enumerate(header) if chr(byte).isdigit()]
            header[digits[int(rng.integers(len(digits)))]] = ord(str(rng.integers(10)))
    stated = len(header) if rng.random() < 0.8 else int(rng.integers(2**40))
    return struct.pack("<Q", stated) + bytes(header) + body


def test_changed_headers_end_in_our_error_or_a_clean_load(saved, tmp_path):
    data, card = saved.read_bytes(), json.loads(saved.with_suffix(".json").read_text())
    path, rng, ends = tmp_path / "m.safetensors", np.random.default_rng(0), {"refused": 0, "loaded": 0}
    for _ in range(N_MUTATED):
        changed = mutated(data, rng)
        path.write_bytes(changed)
        # Whoever changes a header can change the card as well.
        path.with_suffix(".json").write_text(json.dumps(card | {"sha256": hashlib.sha256(changed).hexdigest()}))
        try:
            model = load_model(path)
        except ValueError as error:
            assert str(error).startswith("`model`: m.safetensors"), error
            ends["refused"] += 1
        else:
            assert sum(p.numel() for p in model.parameters()) == card["n_parameters"]
            ends["loaded"] += 1
    print(ends)
    assert ends["refused"] > N_MUTATED / 2


def test_import_and_a_run_open_no_connection():
    code = (
        "import socket\n"
        "def refuse(*a, **k): raise AssertionError('a connection was opened')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "import hadmst_sc as hd\n"
        "sdata = hd.datasets.phantom(n_genes=2, size_um=600.0)\n"
        "hd.pp.validate(sdata, 'phantom_full_image')\n"
        "hd.tl.superresolve(sdata, 'phantom_full_image', bin_um=20.0, show_progress_bar=False)\n"
        "print(sorted(sdata.tables))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "superres_table" in done.stdout, done.stderr


@pytest.mark.parametrize("kind", ["zarr 2", "zarr 3", "other case", "behind a link"])
def test_a_store_with_a_pickle_in_it_is_refused_and_does_not_run(tmp_path, kind):
    store, touched = tmp_path / "section.zarr", tmp_path / "touched"
    datasets.phantom(n_genes=2, size_um=600.0).write(store)
    array = store / "tables" / "table" / "obs" / "evil"
    if kind == "behind a link":
        (tmp_path / "elsewhere").mkdir()
        array.symlink_to(tmp_path / "elsewhere")
    else:
        array.mkdir()
    name = ".ZArray" if kind == "other case" else ".zarray"
    if kind != "zarr 3":
        metadata = {"zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "|O", "order": "C", "fill_value": None}
        (array / name).write_text(json.dumps(metadata | {"compressor": None, "filters": [{"id": "pickle"}]}))
    else:
        codecs = [{"name": "numcodecs.pickle", "configuration": {}}]
        (array / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "array", "codecs": codecs}))
    (array / "0").write_bytes(f"cposix\nsystem\n(S'touch {touched}'\ntR.".encode())
    for command in (["superresolve"], ["validate"]):
        done = CliRunner().invoke(app, [*command, str(store), "phantom_full_image"])
        assert done.exit_code == 2 and "obs/evil" in done.stderr
        assert ("is a link" if kind == "behind a link" else "encoded with pickle") in done.stderr
    assert not touched.exists()
