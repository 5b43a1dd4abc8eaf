"""A section of one's own: read as `superresolve` reads it, named when it cannot be, and a model is fine-tuned on it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import spatialdata
import torch
from anndata import AnnData
from safetensors.torch import load_file
from spatialdata.models import ShapesModel, TableModel
from spatialdata.transformations import Scale
from typer.testing import CliRunner

import hadmst_sc as hd
from hadmst_sc.cli import app
from hadmst_sc.datasets.own import own_section
from hadmst_sc.io import read_observation
from hadmst_sc.models.weights import BUNDLED, load_model, read_card, save_model
from hadmst_sc.section.errors import ContractError
from hadmst_sc.train.bank import RealSection, check_sections
from hadmst_sc.train.config import BankConfig, OwnConfig, TrainConfig, load_config
from hadmst_sc.train.loop import build_model, train

IMAGE, UM_PER_PX = "phantom_full_image", 2.5
TRUTH = {"truth_key": "cells", "um_per_unit": UM_PER_PX}


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With `mine.zarr`: spots, and cells twice: on the pixels of the image, and as circles in µm."""
    sdata = hd.datasets.phantom(70_002, n_genes=6, size_um=800.0, depth=(5.0, 40.0), augment=False)
    rate = np.asarray(sdata["phantom_truth"].data)
    row, column = np.nonzero(rate.sum(0) > 0)
    counts = np.random.default_rng(0).poisson(4 * rate[:, row, column].T).astype(np.float32)
    cells = AnnData(counts, var=pd.DataFrame(index=[str(g) for g in sdata["phantom_truth"].coords["c"].values]))
    cells.obs_names = [f"cell_{i}" for i in range(cells.n_obs)]
    um = (np.column_stack([column, row]) + 0.5) * 10.0
    cells.obsm["spatial"] = um / UM_PER_PX
    sdata["cells"] = TableModel.parse(cells.copy())
    to_pixels = Scale([1 / UM_PER_PX] * 2, axes=("x", "y"))
    sdata["circles"] = ShapesModel.parse(
        um, geometry=0, radius=4.0, index=cells.obs_names, transformations={"phantom": to_pixels}
    )
    cells.obs["cell"], cells.obs["region"] = cells.obs_names, pd.Categorical(["circles"] * cells.n_obs)
    order = np.random.default_rng(1).permutation(cells.n_obs)  # a table need not be in the order of its shapes
    cells = cells[order].copy()
    cells.obsm["spatial"] = um[order]
    sdata["cells_um"] = TableModel.parse(cells, region="circles", region_key="region", instance_key="cell")
    folder = tmp_path_factory.mktemp("own")
    sdata.write(folder / "mine.zarr")
    return folder


def configuration(folder, *entries: str) -> str:
    """A few steps from the bundled weights, on entries."""
    head = """
seed = 0
steps = 4
crop = 32
sections = 2
genes = 3
warmup = 2
log_every = 2
checkpoint_every = 2
threads = 1
real_share = 0.7
draw = 1.0
start_from = "default"
[bank]
first_seed = 50_000
n_phantoms = 1
n_genes = 6
n_workers = 1
start_with = 1
n_masked = 1
[[bank.kinds]]
size_um = 800.0
"""
    path = folder / "fine_tune.toml"
    path.write_text(head + "".join(f"[[bank.real]]\n{entry}\n" for entry in entries))
    return path


SPOTS = f'path = "mine.zarr"\nimage_key = "{IMAGE}"'
CELLS = f'{SPOTS}\ntruth_key = "cells"\num_per_unit = {UM_PER_PX}'


def test_spots_are_read_as_superresolve_reads_them(folder):
    obs, truth = own_section(folder / "mine.zarr", IMAGE, bin_um=20.0)
    sdata = spatialdata.read_zarr(folder / "mine.zarr")
    expected = read_observation(sdata, IMAGE, genes=list(sdata["table"].var_names), bin_um=20.0)
    assert truth is None and obs.genes == expected.genes
    assert np.array_equal(obs.counts, expected.counts) and np.array_equal(obs.he, expected.he)
    assert np.array_equal(obs.measurement.centres, expected.measurement.centres)


def test_every_molecule_is_in_the_spots_or_in_the_truth_and_lies_where_it_was(folder):
    obs, truth = own_section(folder / "mine.zarr", IMAGE, bin_um=10.0, **TRUTH)
    sdata = spatialdata.read_zarr(folder / "mine.zarr")
    rate, cells = np.asarray(sdata["phantom_truth"].data), sdata["cells"]
    order = [list(cells.var_names).index(gene) for gene in obs.genes]
    assert truth.shape == rate.shape and obs.grid.um_per_px == pytest.approx(UM_PER_PX, rel=1e-3)
    total = np.asarray(cells.X).sum(0)[order]
    np.testing.assert_allclose(truth.sum((1, 2)), total / 2, rtol=0.05)
    covered = obs.measurement.coverage > 0
    assert 0.5 < obs.counts.sum() / truth[:, covered].sum() < 1  # spots of half, by the cells whose centres they hold
    here = np.corrcoef(truth.ravel(), rate[order].ravel())[0, 1]
    moved = np.corrcoef(np.roll(truth, 1, 2).ravel(), rate[order].ravel())[0, 1]
    assert here > 0.5 and here > moved + 0.1


def test_positions_come_through_the_shapes_that_the_truth_annotates(folder):
    _, on_pixels = own_section(folder / "mine.zarr", IMAGE, genes=6, **TRUTH)
    obs, in_um = own_section(folder / "mine.zarr", IMAGE, genes=6, truth_key="cells_um", um_per_unit=1.0)
    assert obs.grid.um_per_px == pytest.approx(UM_PER_PX, rel=1e-3)
    assert in_um.shape == on_pixels.shape and in_um.sum() == pytest.approx(on_pixels.sum(), rel=0.02)
    assert np.corrcoef(in_um.sum(0).ravel(), on_pixels.sum(0).ravel())[0, 1] > 0.95


@pytest.mark.parametrize("entry", [SPOTS, CELLS], ids=["spots", "cells"])
def test_a_model_is_fine_tuned_from_the_bundled_one_and_superresolves(folder, tmp_path, entry, monkeypatch):
    monkeypatch.chdir(tmp_path)  # paths are those of the file, not of the shell
    weights = tmp_path / "mine.safetensors"
    config = configuration(folder, entry)
    result = run("--traceback", "train", config, "--out", "run", "--weights", weights)
    assert result.exit_code == 0, result.exception
    card = read_card(weights)
    assert card["training"]["bank"]["real"][0]["path"] == "mine.zarr" and card["training"]["start_from"] == "default"
    assert card["start_sha256"] == read_card(BUNDLED / "default.safetensors")["sha256"]
    (name, description), *_ = card["sections"].items()
    assert name.startswith("mine_20_") and "spots" in description and "6 of 6 genes" in description
    tuned, bundled = load_model(weights).state_dict(), load_model("default").state_dict()
    changed = {key.partition(".")[0] for key in tuned if not torch.equal(tuned[key], bundled[key])}
    assert changed and "student" not in changed
    assert max((tuned[key] - bundled[key]).abs().max() for key in tuned) < 0.05
    sdata = spatialdata.read_zarr(folder / "mine.zarr")
    options = {"genes": 2, "bin_um": 20.0, "gate": False, "align": False, "show_progress_bar": False}
    found = hd.tl.superresolve(sdata, IMAGE, model=str(weights), copy=True, **options)
    assert found["superres_table"].uns["hadmst_sc"]["model"] == "mine"


def test_fine_tuning_resumes_bit_for_bit_from_the_store(folder, tiny, tmp_path):
    start = tmp_path / "start.safetensors"
    save_model(build_model(tiny), start, card={})
    config = load_config(configuration(folder, SPOTS, CELLS))
    config = replace(config, start_from=str(start), bank=replace(config.bank, directory=str(tmp_path / "bank")))

    def sections():
        entries = [{k: v for k, v in vars(own).items() if k != "path"} for own in config.bank.real]
        read = [RealSection(*own_section(folder / "mine.zarr", **entry)) for entry in entries]
        return {f"mine_{section.digest}": section for section in read}

    train(config, sections=sections(), output=tmp_path / "whole")
    for stop in (1, 3, 4):
        train(config, sections=sections(), output=tmp_path / "pieces", until=stop)
    whole, pieces = (load_file(tmp_path / run / "checkpoint.safetensors") for run in ("whole", "pieces"))
    assert set(whole) == set(pieces) and all(torch.equal(whole[name], pieces[name]) for name in whole)


def test_training_begins_with_the_bundled_weights():
    model, bundled = build_model(TrainConfig(start_from="default")), load_model("default")
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), bundled.state_dict().values(), strict=True)
    )


def test_a_network_of_another_form_cannot_start_from_weights():
    with pytest.raises(ValueError, match=r"`start_from='default'`.*widths.*Remove the table `\[model\]`"):
        build_model(TrainConfig(start_from="default", model={"widths": (8, 8, 8)}))


def test_dry_run_lists_the_sections_and_writes_nothing(folder, tmp_path):
    config = configuration(folder, SPOTS, CELLS)
    before = sorted(folder.rglob("*"))
    result = run("train", config, "--dry-run", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    n_spots = spatialdata.read_zarr(folder / "mine.zarr")["table"].n_obs
    lines = [line for line in result.stdout.splitlines() if line.startswith("section ")]
    assert len(lines) == 2 and f"{n_spots} spots, 6 of 6 genes usable" in lines[0] and "half of its mol" in lines[1]
    assert sorted(folder.rglob("*")) == before and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (f'path = "none.zarr"\nimage_key = "{IMAGE}"', ["[[bank.real]] 1, none.zarr", "`path`", "does not exist"]),
        (f'path = "."\nimage_key = "{IMAGE}"', ["`path`", "is not a zarr store"]),
        ('path = "mine.zarr"\nimage_key = "he"', ["mine.zarr: `image_key='he'`", "Available", IMAGE]),
        (f'{SPOTS}\ntable_key = "counts"', ["`table_key='counts'`", "'cells_um'"]),
        (f'{SPOTS}\nlayer = "raw"', ["`layer='raw'`"]),
        (f'{SPOTS}\ngenes = ["NOPE"]', ["`genes` has 1 of 1 names", "'NOPE'"]),
        (f'{CELLS}\ntissue_key = "ink"', ["`tissue_key='ink'`", "'phantom_regions'"]),
        (f'{SPOTS}\ntruth_key = "xenium"\num_per_unit = 1.0', ["`truth_key='xenium'`", "Available"]),
        (f'{SPOTS}\ntruth_key = "cells"\num_per_unit = 0.001', ["mine.zarr: ", "um_per_unit"]),
        (f'{SPOTS}\ntruth_key = "cells_um"\num_per_unit = 1.0\ncoordinate_system = "moon"', ["'moon'", "'phantom'"]),
    ],
)
def test_an_entry_that_cannot_be_read_is_named_with_argument_and_remedy(folder, tmp_path, entry, said):
    result = run("train", configuration(folder, entry), "--out", tmp_path / "run")
    assert result.exit_code == 2 and not (tmp_path / "run").exists()
    assert all(part in result.stderr for part in said), result.stderr


def test_all_entries_that_cannot_be_read_are_reported_at_once(folder, tmp_path):
    config = configuration(folder, 'path = "a.zarr"\nimage_key = "he"', SPOTS, 'path = "b.zarr"\nimage_key = "he"')
    result = run("train", config, "--dry-run")
    assert result.exit_code == 2 and "(2 problems)" in result.stderr
    assert "[[bank.real]] 1, a.zarr" in result.stderr and "[[bank.real]] 3, b.zarr" in result.stderr


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (f'{SPOTS}\nimage = "x"', r"bank\.real\[1\]` has unknown keys \['image'\]; known keys are .*'image_key'"),
        ('path = "mine.zarr"', r"bank\.real\[1\]` needs \['image_key'\]"),
        ('pth = "mine.zarr"\nimage_key = "he"', r"unknown keys \['pth'\]; known keys are .*'path'"),
        (f'{SPOTS}\ngenes = "EPCAM"', r"`genes` needs a list of names or a number, but is 'EPCAM'"),
        (f'{SPOTS}\nbin_um = "20"', r"bank\.real\[1\]`: `bin_um` needs a positive number, but is '20'"),
        (f"{SPOTS}\nbin_um = true", r"`bin_um` needs a positive number, but is True"),
        (f"{SPOTS}\nbin_um = -1", r"`bin_um` needs a positive number, but is -1"),
        (f"{SPOTS}\nlayer = 3", r"`layer` needs text in quotes, but is 3"),
        (f'{SPOTS}\ntruth_key = "cells"', r"`truth_key` needs `um_per_unit`.*Xenium"),
        (f"{SPOTS}\num_per_unit = 1.0", r"`um_per_unit` needs `truth_key`"),
        (f'{CELLS}\ntable_key = "table"', r"`truth_key` and `table_key` exclude each other"),
        ('path = ""\nimage_key = "he"', r"`path` needs non-empty text in quotes"),
    ],
)
def test_an_entry_that_makes_no_sense_is_refused_before_anything_is_read(tmp_path, entry, said):
    with pytest.raises(ValueError, match=said):
        load_config(configuration(tmp_path, entry))


def test_a_store_that_would_run_code_is_refused(folder, tmp_path):
    shutil.copytree(folder / "mine.zarr", tmp_path / "mine.zarr")
    array = next((tmp_path / "mine.zarr" / "tables").rglob("X/data/zarr.json"))
    packed = json.loads(array.read_text())
    packed["codecs"] = [{"name": "numcodecs.pickle", "configuration": {}}]
    array.write_text(json.dumps(packed))
    result = run("train", configuration(tmp_path, SPOTS), "--dry-run")
    assert result.exit_code == 2 and "pickle" in result.stderr and "[[bank.real]] 1" in result.stderr


def test_a_truth_without_positions_or_off_the_image_is_refused(folder, tmp_path):
    sdata = spatialdata.read_zarr(folder / "mine.zarr")
    cells = sdata["cells"]
    cells.obsm["spatial"] = cells.obsm["spatial"] + 1e5
    del sdata["cells"], sdata["cells_um"]
    sdata["off"] = cells
    sdata["nowhere"] = TableModel.parse(AnnData(cells.X, var=cells.var))
    sdata.write(tmp_path / "bad.zarr")
    with pytest.raises(ValueError, match=r"`truth_key='off'` needs positions on image .* are outside it"):
        own_section(tmp_path / "bad.zarr", IMAGE, truth_key="off", um_per_unit=UM_PER_PX)
    with pytest.raises(KeyError, match=r"`truth_key='nowhere'` needs positions"):
        own_section(tmp_path / "bad.zarr", IMAGE, truth_key="nowhere", um_per_unit=UM_PER_PX)


def test_sections_that_cannot_fill_a_crop_are_refused_together(real):
    small = real["section_10"].obs
    sections = {"few": RealSection(small.subset_spots(np.arange(5)))} | real
    config = TrainConfig(genes=8, real_share=0.5, bank=BankConfig(n_phantoms=0))
    with pytest.raises(ContractError) as error:
        check_sections(sections, config)
    text = str(error.value)
    assert "few: at least 24 spots" in text and "section_10: `genes=8`" in text and "`bank.n_phantoms`" in text
    check_sections(real, TrainConfig(genes=3))


def test_a_section_that_changed_is_another_section(real):
    obs = real["section_10"].obs
    counts = obs.counts.copy()
    counts[0, 0] += 1
    digests = {RealSection(obs).digest, RealSection(replace(obs, counts=counts)).digest}
    digests.add(RealSection(obs, np.zeros((len(obs.genes), *obs.grid.shape), np.float32)).digest)
    assert len(digests) == 3 and RealSection(obs).digest == real["section_10"].digest


def test_the_committed_configuration_fine_tunes_the_bundled_model_on_ones_own(root):
    config = load_config(root / "training" / "fine_tune.toml")
    assert config.start_from == "default" and all(isinstance(entry, OwnConfig) for entry in config.bank.real)
    assert 0 < config.real_share < 1 and config.bank.n_phantoms
