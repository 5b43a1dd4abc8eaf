"""Public sections are downloaded once, checked and read; without a connection the error says what to do."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pooch
import pytest

import hadmst_sc as hd
from hadmst_sc.datasets import download
from hadmst_sc.phantom.simulate import simulate

pytest.importorskip("spatialdata_io")
server = runpy.run_path(str(Path(__file__).with_name("server.py")))
NAMES = list(download.SAMPLES)
NAME = NAMES[0]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder of made-up sections, and these sections with their sha256."""
    folder = tmp_path_factory.mktemp("published")
    drawn = simulate(3, size_um=800.0, n_genes=4, depth=(5.0, 40.0), misregistration_um=0.0, augment=False)
    return folder, server["publish"](folder, drawn)


@pytest.fixture
def online(published, monkeypatch, tmp_path):
    """Requests to a server of these sections; the cache is a new folder."""
    folder, samples = published
    with server["serving"](folder) as (url, requests):
        monkeypatch.setattr(download, "SERVER", url)
        monkeypatch.setattr(download, "SAMPLES", samples)
        monkeypatch.setenv("HADMST_CACHE", str(tmp_path / "cache"))
        yield requests


@pytest.fixture
def offline(published, monkeypatch, tmp_path):
    """As `online`, but nothing answers."""
    monkeypatch.setattr(download, "SERVER", "http://127.0.0.1:9")
    monkeypatch.setattr(download, "SAMPLES", published[1])
    monkeypatch.setenv("HADMST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / NAME


@pytest.mark.parametrize("name", NAMES)
def test_a_section_is_read_with_counts_spots_and_images(online, published, name):
    sdata = getattr(hd.datasets, name)()
    assert set(sdata.images) == {f"{name}_{kind}_image" for kind in ("full", "hires", "lowres")}
    assert set(sdata.shapes) == {name} and set(sdata.tables) == {"table"}
    assert sdata["table"].n_obs == len(sdata[name]) > 30 and sdata["table"].X.sum() > 0
    sample = download.SAMPLES[name]
    assert {path for path, _ in online} == {f"/{sample.id}/{sample.file(kind)}" for kind in sample.sha256}


@pytest.mark.torch
def test_a_downloaded_section_is_super_resolved_as_it_is(online):
    sdata = hd.datasets.visium_mouse_brain()
    hd.tl.superresolve(sdata, f"{NAME}_full_image", bin_um=20.0, model=None, gate=False, show_progress_bar=False)
    assert sdata["superres"].shape[0] == 4 and np.isfinite(sdata["superres_table"].X).all()


def test_files_are_downloaded_once_and_the_licence_is_told_once(online, caplog):
    pooch.get_logger().addHandler(caplog.handler)
    for _ in range(2):
        hd.datasets.visium_mouse_brain()
        assert [agent for _, agent in online] == ["hadmst_sc"] * 3
        assert caplog.text.count("of 10x Genomics (https://www.10xgenomics.com/datasets/mouse-brain") == 1
        assert caplog.text.count("CC BY 4.0") == 1
    pooch.get_logger().removeHandler(caplog.handler)


def test_the_full_image_may_be_left_out(online):
    sdata = hd.datasets.visium_mouse_brain(full_image=False)
    assert set(sdata.images) == {f"{NAME}_hires_image", f"{NAME}_lowres_image"}
    assert not any(path.endswith("image.tif") for path, _ in online)


def test_the_cache_is_the_given_folder(online, tmp_path):
    hd.datasets.visium_mouse_brain(tmp_path / "mine", full_image=False)
    assert (tmp_path / "mine" / NAME / "spatial" / "scalefactors_json.json").is_file()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("kind", [download.COUNTS, download.SPATIAL, download.IMAGE])
def test_a_damaged_file_is_downloaded_again(online, tmp_path, kind):
    hd.datasets.visium_mouse_brain()
    path = tmp_path / "cache" / NAME / download.SAMPLES[NAME].file(kind)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    hd.datasets.visium_mouse_brain()
    assert path.read_bytes() == whole and len(online) == 4


def test_a_file_that_is_not_the_published_one_is_refused_and_not_kept(online, tmp_path, monkeypatch):
    sample = download.SAMPLES[NAME]
    changed = sample._replace(sha256=sample.sha256 | {download.COUNTS: "0" * 64})
    monkeypatch.setitem(download.SAMPLES, NAME, changed)
    with pytest.raises(ConnectionError, match="hash of downloaded file"):
        hd.datasets.visium_mouse_brain()
    assert list((tmp_path / "cache" / NAME).iterdir()) == []


def test_without_a_connection_the_files_and_their_folder_are_named_and_work_by_hand(offline, published):
    with pytest.raises(ConnectionError) as caught:
        hd.datasets.visium_mouse_brain()
    first, *urls = str(caught.value).splitlines()
    sample = download.SAMPLES[NAME]
    assert "needs 3 file(s) that could not be downloaded" in first and repr(str(offline)) in first
    assert urls == [f"http://127.0.0.1:9/{sample.id}/{sample.file(kind)}" for kind in sample.sha256]
    for url in urls:
        name = url.rpartition("/")[2]
        (offline / name).write_bytes((published[0] / sample.id / name).read_bytes())
    assert f"{NAME}_full_image" in hd.datasets.visium_mouse_brain().images


def test_without_a_connection_only_what_is_lacking_is_named(offline, published):
    sample = download.SAMPLES[NAME]
    offline.mkdir(parents=True)
    name = sample.file(download.COUNTS)
    (offline / name).write_bytes((published[0] / sample.id / name).read_bytes())
    with pytest.raises(ConnectionError) as caught:
        hd.datasets.visium_mouse_brain()
    assert "needs 2 file(s)" in str(caught.value) and name not in str(caught.value).partition("again:")[2]


def test_without_the_reader_its_installation_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "spatialdata_io", None)
    with pytest.raises(ImportError, match=r"pip install 'hadmst-sc\[io\]'"):
        hd.datasets.visium_mouse_brain(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_published_sections_have_addresses_and_sha256():
    assert download.SERVER.startswith("https://cf.10xgenomics.com/")
    for sample in download.SAMPLES.values():
        assert set(sample.sha256) == {download.COUNTS, download.SPATIAL, download.IMAGE}
        assert all(len(digest) == 64 and int(digest, 16) for digest in sample.sha256.values())
    assert len({digest for sample in download.SAMPLES.values() for digest in sample.sha256.values()}) == 9
