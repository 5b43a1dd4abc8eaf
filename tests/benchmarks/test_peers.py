"""The registry of published tools is complete, and whatever a tool does, maps or a reason come out."""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from hadmst_sc.section.measurement import degrade


@pytest.fixture
def peers(monkeypatch, tmp_path):
    import peers

    for peer in peers.PEERS.values():
        for variable in (peer.checkout, peer.interpreter):
            monkeypatch.delenv(variable or "_", raising=False)
    monkeypatch.setenv(peers.HOME, str(tmp_path / "home"))
    monkeypatch.setenv("FAKE_PEER", sys.executable)
    return peers


@pytest.fixture
def fake(peers, tmp_path, monkeypatch):
    """A peer whose runner is the code given, run by this interpreter after the section has been read."""
    monkeypatch.setattr(peers, "HERE", tmp_path)

    def make(code, **fields):
        start = "import os, sys, time; import numpy as np; s = np.load(sys.argv[1] + '/section.npz')\n"
        start += (
            "shape = (len(s['genes']), *s['inside'].shape); save = lambda m: np.save(sys.argv[1] + '/maps.npy', m)\n"
        )
        (tmp_path / "fake.py").write_text(start + code)
        return peers.Peer("Fake", "nobody", "none", "fake.py", "", interpreter="FAKE_PEER", **fields)

    return make


@pytest.fixture
def obs(make_section):
    return make_section(lambda y, x: np.array([2 + np.sin(y / 5), 0.1 + x / 40]), noise=True)


def test_runner_reads_the_section_as_it_is(fake, peers, obs, tmp_path):
    copy = tmp_path / "copy.npz"
    peers.run(
        fake(f"import shutil; shutil.copy(sys.argv[1] + '/section.npz', {str(copy)!r}); save(np.ones(shape))"), obs
    )
    section = np.load(copy)
    np.testing.assert_array_equal(section["counts"], obs.counts)
    np.testing.assert_array_equal(section["he"], obs.he)
    np.testing.assert_array_equal(section["inside"], obs.inside)
    assert section["genes"].tolist() == list(obs.genes)
    np.testing.assert_allclose(section["spots_um"][:3], [[50, 50], [150, 50], [250, 50]])  # x first
    assert (section["bin_um"], section["he_um"]) == (20, 10)
    np.testing.assert_allclose([section["spot_um"], section["pitch_um"]], [55, 100])
    assert section["features"].shape[1:] == obs.grid.shape


def test_maps_in_any_unit_get_the_measured_sums(fake, peers, obs):
    raw = "y, x = np.indices(shape[1:]); save(np.stack([7 * (1 + y % 3), 1e-3 * (1.0 + x)]))"
    maps = peers.run(fake(raw), obs)
    assert maps.dtype == np.float32
    np.testing.assert_allclose(degrade(maps, obs.measurement).sum(0), obs.counts.sum(0), rtol=1e-5)
    assert (maps[:, ~obs.inside] == 0).all()
    y, x = np.indices(obs.grid.shape)
    for found, given in zip(maps, (1 + y % 3, 1.0 + x), strict=True):
        assert np.ptp((found / given)[obs.inside]) < 1e-5 * found.max()  # one factor for each gene


def test_map_of_zeros_is_an_answer(fake, peers, obs):
    maps = peers.run(fake("save(np.stack([np.zeros(shape[1:]), np.full(shape[1:], 3.0)]))"), obs)
    assert (maps[0] == 0).all()
    assert np.ptp(maps[1][obs.inside]) == 0


def test_negative_values_count_as_zero(fake, peers, obs):
    maps = peers.run(fake("m = np.ones(shape); m[:, 0] = -5; save(m)"), obs)
    assert (maps[:, 0] == 0).all()
    np.testing.assert_allclose(degrade(maps, obs.measurement).sum(0), obs.counts.sum(0), rtol=1e-5)


def test_same_runner_twice_gives_the_same_numbers(fake, peers, obs):
    peer = fake("rng = np.random.default_rng(hash('seed') % 99); save(rng.random(shape))")  # hash() has its own seed
    np.testing.assert_array_equal(peers.run(peer, obs), peers.run(peer, obs))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("print('noise'); sys.exit('no such gene')", "Fake: exit status 1\nno such gene"),
        ("save(np.ones((2, 3, 3)))", r"Fake: its maps have the shape \(2, 3, 3\), not \(2, 40, 40\)"),
        ("m = np.ones(shape); m[0] = np.nan; save(m)", "Fake: 50% of its maps are not finite"),
        ("m = np.ones(shape); m[:] = np.inf; save(m)", "Fake: 100% of its maps are not finite"),
        ("pass", "Fake: wrote no maps.npy"),
    ],
)
def test_failure_tells_why(fake, peers, obs, code, reason):
    with pytest.raises(peers.PeerFailed, match=reason):
        peers.run(fake(code), obs)


def test_values_outside_the_tissue_need_not_be_finite(fake, peers, obs):
    maps = peers.run(fake("m = np.ones(shape); m[:, ~s['inside']] = np.nan; save(m)"), obs)
    assert np.isfinite(maps).all()


def test_only_the_last_lines_of_stderr_are_shown(fake, peers, obs):
    with pytest.raises(peers.PeerFailed) as failure:
        peers.run(fake("[print('line', i, file=sys.stderr) for i in range(100)]; sys.exit(3)"), obs)
    assert str(failure.value).splitlines() == ["Fake: exit status 3", *(f"line {i}" for i in range(85, 100))]


def test_time_limit_ends_what_the_runner_has_started_too(fake, peers, obs, tmp_path):
    pid = tmp_path / "pid"
    code = "import subprocess; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    code += f"open({str(pid)!r}, 'w').write(str(child.pid)); time.sleep(60)"
    with pytest.raises(peers.PeerFailed, match="Fake: took longer than 3 s"):
        peers.run(fake(code), obs, timeout_s=3)
    for _ in range(50):
        try:
            os.kill(int(pid.read_text()), 0)
            with open(f"/proc/{pid.read_text()}/stat") as stat:
                gone = stat.read().split()[2] == "Z"  # nobody has asked for its exit status yet
        except OSError:
            gone = True
        if gone:
            return
        time.sleep(0.1)
    pytest.fail("the child outlives its runner")


def test_runner_sees_neither_our_packages_nor_a_gpu(fake, peers, obs, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/ours")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    wanted = "assert (os.environ.get('PYTHONPATH'), os.environ['CUDA_VISIBLE_DEVICES']) == (None, '')\n"
    peers.run(fake(wanted + "assert os.environ['OMP_NUM_THREADS'] == '1'; save(np.ones(shape))"), obs)


def test_r_runner_gets_text(peers, obs, tmp_path):
    peers.write_section(tmp_path, obs, text=True)
    np.testing.assert_allclose(np.loadtxt(tmp_path / "counts.tsv"), obs.counts)
    np.testing.assert_allclose(np.loadtxt(tmp_path / "sizes.tsv"), [55, 100, 20], rtol=1e-5)
    np.testing.assert_array_equal(np.loadtxt(tmp_path / "inside.tsv"), obs.inside)


def test_reason_names_the_variable_and_what_is_missing(peers, tmp_path, monkeypatch, obs):
    istar = peers.PEERS["iStar"]
    checkout = "set HADMST_PEER_ISTAR to a checkout of github.com/daviddaiweizhang/istar with its checkpoints"
    assert peers.available(istar) == checkout
    monkeypatch.setenv("HADMST_PEER_ISTAR", str(tmp_path))
    (tmp_path / "impute.py").touch()
    lacks = f", which lacks checkpoints/vit256_small_dino.pth, checkpoints/vit4k_xs_dino.pth in {tmp_path}"
    assert peers.available(istar) == checkout + lacks
    for file in istar.needs:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    assert peers.available(istar) == "set HADMST_PEER_ISTAR_PYTHON to a Python with the requirements of iStar"
    monkeypatch.setenv("HADMST_PEER_ISTAR_PYTHON", sys.executable)
    assert peers.available(istar) is None
    with pytest.raises(peers.PeerFailed, match="BayesSpace: set HADMST_PEER_BAYESSPACE to an Rscript"):
        peers.run(peers.PEERS["BayesSpace"], obs)


def installed(peers, monkeypatch, tmp_path, requirements):
    """A peer with its own environment, for which any Python will do."""
    (tmp_path / "fake.txt").write_text(requirements)
    monkeypatch.setattr(peers, "HERE", tmp_path)
    monkeypatch.setenv(peers.PYTHON, sys.executable)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return peers.Peer("Fake", "nobody", "none", "fake.py", "", requirements="fake.txt")


def pretend_to_install(peers, monkeypatch):
    """The commands, of which each takes a moment and makes the folder."""
    started = []

    def run(command, **_):
        started.append(command)
        time.sleep(0.2)
        (command[-1] if "venv" in command else command[0].parent).mkdir(parents=True, exist_ok=True)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(peers.subprocess, "run", run)
    return started


def test_environment_is_made_once_by_two_that_ask_together(peers, tmp_path, monkeypatch):
    peer = installed(peers, monkeypatch, tmp_path, "# nothing\n")
    started = pretend_to_install(peers, monkeypatch)
    found = []
    threads = [threading.Thread(target=lambda: found.append(peers.environment(peer))) for _ in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(started) == 2  # the environment and its packages
    assert found == [peers._folder(peer)] * 2
    assert started[1][1:] == ["-m", "pip", "install", "--no-deps", "--no-input", "-r", tmp_path / "fake.txt"]
    (tmp_path / "fake.txt").write_text("# other\n")
    assert peers._folder(peer) != found[0]


def test_failed_installation_is_remembered(peers, tmp_path, monkeypatch):
    peer = installed(peers, monkeypatch, tmp_path, "hadmst-no-such-package==1\n")
    assert peers.available(peer) is None
    with pytest.raises(peers.PeerFailed, match=r"Fake: its installation failed .*hadmst-no-such-package"):
        peers.environment(peer)
    folder = peers._folder(peer)
    assert not folder.exists()
    assert str(folder.with_suffix(".log")) in peers.available(peer)
    monkeypatch.setattr(peers.subprocess, "run", lambda *_, **__: pytest.fail("tried again"))
    with pytest.raises(peers.PeerFailed, match=r"delete .*failed to try again"):
        peers.environment(peer)


def test_interrupted_installation_starts_anew(peers, tmp_path, monkeypatch):
    peer = installed(peers, monkeypatch, tmp_path, "# nothing\n")
    left = peers._folder(peer) / "bin/half"
    left.parent.mkdir(parents=True)
    left.touch()
    pretend_to_install(peers, monkeypatch)
    assert (peers.environment(peer) / "ready").exists()
    assert not left.exists()


def test_another_python_is_asked_for(peers, monkeypatch):
    monkeypatch.setattr(peers, "_python", lambda: None)
    assert peers.available(peers.PEERS["TESLA"]) == (
        "set HADMST_PEERS_PYTHON to a Python 3.11, for which its requirements are pinned"
    )


def test_registry_is_complete(peers):
    readme = (peers.HERE / "README.md").read_text()
    runners = {file.name for file in peers.HERE.iterdir() if file.suffix in (".py", ".R")}
    assert runners == {peer.runner for peer in peers.PEERS.values()}
    for name, peer in peers.PEERS.items():
        assert name == peer.name
        assert peer.citation and peer.licence and peer.settings
        assert bool(peer.requirements) != bool(peer.interpreter)  # one of them runs it
        assert f"| {name} |" in readme and f"`{peer.runner}`" in readme
        for variable in filter(None, (peer.checkout, peer.interpreter, peers.HOME, peers.PYTHON)):
            assert f"`{variable}`" in readme
    assert sum(peer.tried and not peer.checkout for peer in peers.PEERS.values()) >= 2


def test_requirements_are_pinned(peers):
    for peer in peers.PEERS.values():
        if peer.requirements:
            lines = (peers.HERE / peer.requirements).read_text().splitlines()
            assert all("==" in line or line.startswith("#") for line in lines)
            assert "torch==2.13.0" in lines


def test_row_order_of_the_spots_does_not_matter_to_the_scale(peers, obs):
    some = obs.subset_spots(np.arange(20)[::-1])
    maps = peers.to_counts(np.ones((2, *obs.grid.shape)), some)
    twice = peers.to_counts(np.ones((2, *obs.grid.shape)), replace(some, counts=2 * some.counts))
    np.testing.assert_allclose(twice, 2 * maps)
    np.testing.assert_allclose(maps, peers.to_counts(np.ones((2, *obs.grid.shape)), obs.subset_spots(np.arange(20))))
