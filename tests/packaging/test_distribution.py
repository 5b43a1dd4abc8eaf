"""What is published, built here and looked into: the wheel, and the sdist from which it can be made again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import venv
from email import message_from_bytes
from email.message import Message
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from zipfile import ZipFile

import pytest

import hadmst_sc

pytestmark = pytest.mark.slow

VERSION = hadmst_sc.__version__
FIRST_PICTURE_S = 90.0
SDIST_MB, FILE_MB = 4.0, 1.0
HOME = "https://github.com/hadmst-sc/hadmst-sc/blob"
RAW = "https://raw.githubusercontent.com/hadmst-sc/hadmst-sc"


def build(source: Path, target: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, text=True)
    return next(iter(folder.iterdir()))


@pytest.fixture(scope="module")
def wheel(root, tmp_path_factory) -> Path:
    return build(root, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(root, tmp_path_factory) -> Path:
    return build(root, "sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def metadata(wheel) -> Message:
    with ZipFile(wheel) as archive:
        return message_from_bytes(archive.read(f"hadmst_sc-{VERSION}.dist-info/METADATA"))


def contents(wheel: Path) -> dict[str, str]:
    """Names and sha256 of all files."""
    with ZipFile(wheel) as archive:
        return {name: sha256(archive.read(name)).hexdigest() for name in archive.namelist()}


def test_wheel_holds_the_package_with_its_weights_and_nothing_else(wheel, root):
    assert wheel.name == f"hadmst_sc-{VERSION}-py3-none-any.whl"
    found = contents(wheel)
    source = root / "src" / "hadmst_sc"
    files = [path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    ours = {f"hadmst_sc/{path.relative_to(source)}": sha256(path.read_bytes()).hexdigest() for path in files}
    about = f"hadmst_sc-{VERSION}.dist-info/"
    assert {name: digest for name, digest in found.items() if not name.startswith(about)} == ours
    added = {name.removeprefix(about) for name in set(found) - set(ours)}
    assert added == {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
    needed = (
        "py.typed",
        "models/_weights/default.safetensors",
        "models/_weights/default.json",
        "models/_weights/default.md",
    )
    assert {f"hadmst_sc/{name}" for name in needed} <= set(found)


def test_sdist_builds_the_same_wheel(sdist, wheel, tmp_path):
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    source = tmp_path / "source" / f"hadmst_sc-{VERSION}"
    beside = "tests/conftest.py constraints.txt Dockerfile Makefile LICENSE README.md CHANGELOG.md CITATION.cff .ci/run"
    assert [name for name in beside.split() if not (source / name).is_file()] == []
    assert contents(build(source, "wheel", tmp_path / "wheel")) == contents(wheel)


def test_metadata_is_complete(metadata, root):
    assert (metadata["Name"], metadata["Version"]) == ("hadmst-sc", VERSION)
    assert metadata["License-Expression"] == "BSD-3-Clause" and metadata.get_all("License-File") == ["LICENSE"]
    assert metadata["Requires-Python"] == ">=3.11"
    assert set(metadata.get_all("Provides-Extra")) == {"benchmark", "dask", "io", "train", "tutorials"}
    assert {url.split(",")[0] for url in metadata.get_all("Project-URL")} == {"Source", "Documentation", "Changelog"}
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata["Summary"] and metadata["Keywords"] and "Typing :: Typed" in metadata.get_all("Classifier")


def test_links_of_the_description_lead_to_the_files_of_this_version(metadata, root):
    description, readme = metadata.get_payload(decode=True).decode(), (root / "README.md").read_text()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", description) if not link.startswith("#")]
    assert links and [link for link in links if not link.startswith("https://")] == []
    ours = f"{HOME}/v{VERSION}/", f"{RAW}/v{VERSION}/"
    files = [link.removeprefix(start).split("#")[0] for link in links for start in ours if link.startswith(start)]
    assert files and [name for name in files if not (root / name).exists()] == []
    for start in ours:
        description = description.replace(f"]({start}", "](")
    assert description.strip() == readme.strip(), "only links differ from the README"


def test_sdist_is_small(sdist):
    with tarfile.open(sdist) as archive:
        large = [one.name for one in archive.getmembers() if one.size > FILE_MB * 1e6]
    assert sdist.stat().st_size <= SDIST_MB * 1e6
    assert large == [f"hadmst_sc-{VERSION}/src/hadmst_sc/models/_weights/default.safetensors"]


def test_each_extra_brings_what_it_is_for(metadata):
    required = metadata.get_all("Requires-Dist")
    extras = {
        "io": "spatialdata-io",
        "train": "lightning-fabric",
        "dask": "distributed",
        "benchmark": "joblib",
        "tutorials": "squidpy",
    }
    for extra, package in extras.items():
        assert any(line.startswith(package) and f"extra == '{extra}'" in line for line in required)
    always = [line for line in required if "extra ==" not in line]
    assert any(line.startswith("torch") for line in always)
    assert not any(line.startswith(tuple(extras.values())) for line in always)


@pytest.mark.skipif("HADMST_WHEEL_DEMO" not in os.environ, reason="installs everything anew: `make wheel-demo`")
def test_first_picture_comes_within_90_seconds_of_installing_the_wheel(wheel, root, tmp_path, capsys):
    fresh = tmp_path / "venv"
    venv.create(fresh, with_pip=True)
    pip = [str(fresh / "bin" / "python"), "-m", "pip", "install", "--quiet", "-c", str(root / "constraints.txt")]
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    started = perf_counter()
    subprocess.run([*pip, str(wheel)], env=outside, check=True)
    installed = perf_counter()
    demo = [str(fresh / "bin" / "hadmst-sc"), "demo", "--output", "demo"]
    run = subprocess.run(demo, cwd=tmp_path, env=outside, capture_output=True, text=True)
    seconds = perf_counter() - installed
    assert run.returncode == 0, run.stderr[-2000:]
    with capsys.disabled():
        print(f"\n{run.stdout}installed in {installed - started:.0f} s, first picture {seconds:.1f} s later")
    assert (tmp_path / "demo" / "superres.png").stat().st_size > 10_000
    assert seconds < FIRST_PICTURE_S
