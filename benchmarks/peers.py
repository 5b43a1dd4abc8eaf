"""Published tools beside our methods: each a separate process in its own environment, behind a thin runner of ours.

A runner in ``peers/`` reads ``section.npz`` from the folder it is given and writes ``maps.npy`` there. None of the
tools' code is here: :func:`environment` installs it, or a variable of the environment names where it lies.
``peers/README.md`` tells how to get each one and how to add another.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hadmst_sc.section.measurement import degrade
from hadmst_sc.section.observation import Observation

HERE = Path(__file__).parent / "peers"
HOME, PYTHON = "HADMST_PEERS", "HADMST_PEERS_PYTHON"
PINNED_FOR = (3, 11)  # of the requirement files; older releases of numpy and pandas have no wheels for later ones
TIMEOUT_S = 3600.0


class PeerFailed(RuntimeError):
    """A published tool could not be installed, died, took too long, or returned what are no maps."""


@dataclass(frozen=True)
class Peer:
    """A published tool, as ``peers/peers.toml`` declares it, by the name that it has in tables."""

    name: str
    citation: str
    licence: str
    runner: str  # file in `peers/`; with `.R` it also gets the section as text
    settings: str  # with what it is run, and why
    requirements: str = ""  # pinned file in `peers/` from which its environment is made; empty with an interpreter
    checkout: str = ""  # variable that names a checkout
    checkout_of: str = ""
    needs: Sequence[str] = ()  # files that must be in the checkout
    interpreter: str = ""  # variable that names a program that runs the runner
    interpreter_with: str = ""  # what must be installed for it
    tried: bool = False  # whether it has run here; otherwise the runner is written from its documentation


def _registry() -> dict[str, Peer]:
    declared = tomllib.loads((HERE / "peers.toml").read_text())
    return {name: Peer(name, **fields) for name, fields in declared.items()}


PEERS = _registry()


def available(peer: Peer) -> str | None:
    """``None`` if the peer can run, else the reason in one sentence. Nothing is installed to find out."""
    if peer.checkout:
        place = os.environ.get(peer.checkout, "")
        missing = [file for file in peer.needs if not (Path(place) / file).is_file()]
        if not place or missing:
            lacks = f", which lacks {', '.join(missing)} in {place}" if place else ""
            return f"set {peer.checkout} to a checkout of {peer.checkout_of}{lacks}"
    if peer.interpreter and not shutil.which(os.environ.get(peer.interpreter, "")):
        return f"set {peer.interpreter} to {peer.interpreter_with}"
    if peer.requirements:
        folder = _folder(peer)
        if folder.with_suffix(".failed").exists():
            return folder.with_suffix(".failed").read_text().strip()
        if not (folder / "ready").exists() and _python() is None:
            version = ".".join(map(str, PINNED_FOR))
            return f"set {PYTHON} to a Python {version}, for which its requirements are pinned"
    return None


def _home() -> Path:
    return Path(os.environ.get(HOME) or Path(__file__).parent / ".peers").resolve()


def _folder(peer: Peer) -> Path:
    """Another requirement file is another environment, so that none is ever brought up to date in part."""
    digest = hashlib.sha256((HERE / peer.requirements).read_bytes()).hexdigest()[:8]
    return _home() / f"{Path(peer.runner).stem}-{digest}"


def _python() -> str | None:
    """Interpreter from which environments are made."""
    if os.environ.get(PYTHON):
        return shutil.which(os.environ[PYTHON])
    return sys.executable if sys.version_info[:2] == PINNED_FOR else shutil.which("python{}.{}".format(*PINNED_FOR))


def environment(peer: Peer) -> Path:
    """Folder of the peer's virtual environment, made at the first call.

    A second process that asks meanwhile waits for the first. A failed installation raises :class:`PeerFailed`, and is
    not tried again until its ``.failed`` file is deleted.
    """
    folder = _folder(peer)
    failed, log = folder.with_suffix(".failed"), folder.with_suffix(".log")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the system lets go of it even when this process is killed
        if (folder / "ready").exists():
            return folder
        reason = available(peer)
        if reason:
            raise PeerFailed(f"{peer.name}: {reason}")
        shutil.rmtree(folder, ignore_errors=True)  # what an interrupted installation left
        install = [folder / "bin/python", *"-m pip install --no-deps --no-input -r".split(), HERE / peer.requirements]
        with open(log, "w") as out:
            for command in ([_python(), "-m", "venv", folder], install):
                if subprocess.run(command, stdout=out, stderr=subprocess.STDOUT).returncode:
                    out.flush()
                    why = ([line for line in log.read_text().splitlines() if "ERROR" in line] or ["no reason given"])[0]
                    failed.write_text(
                        f"its installation failed ({why.strip()}); see {log}, delete {failed} to try again"
                    )
                    shutil.rmtree(folder, ignore_errors=True)
                    raise PeerFailed(f"{peer.name}: {failed.read_text()}")
        (folder / "ready").touch()
    return folder


def run(peer: Peer, obs: Observation, *, timeout_s: float = TIMEOUT_S) -> np.ndarray:
    """``(genes, ny, nx)`` float32, expected counts per bin, zero outside the tissue.

    :class:`PeerFailed` is raised where the peer is unavailable, exits with an error, takes longer than ``timeout_s``,
    or returns maps of another shape or that are not finite. Constant maps are an answer.
    """
    reason = available(peer)
    if reason:
        raise PeerFailed(f"{peer.name}: {reason}")
    program = os.environ[peer.interpreter] if peer.interpreter else str(environment(peer) / "bin/python")
    with tempfile.TemporaryDirectory(prefix=f"hadmst-{Path(peer.runner).stem}-") as name:
        folder = Path(name)
        write_section(folder, obs, text=peer.runner.endswith(".R"))
        # Run from there, as Python looks for packages beside a script: `tesla.py` would be found as TESLA.
        runner = shutil.copy(HERE / peer.runner, folder / f"runner{Path(peer.runner).suffix}")
        _start(peer, [program, str(runner), name], folder, timeout_s)
        return to_counts(_maps(peer, folder / "maps.npy", (len(obs.genes), *obs.grid.shape), obs.inside), obs)


def write_section(folder: Path, obs: Observation, *, text: bool = False) -> None:
    """Write the files that a runner reads; the fields are described in ``peers/README.md``."""
    from hadmst_sc.section.features import he_features

    bin_um = obs.grid.bin_um
    spots_um = obs.measurement.centres[:, ::-1] * bin_um  # x, y
    source = obs.source
    # Where nobody said so: the disc of the same area, and the distance to the nearest neighbour.
    spot_um = (source and source.spot_um) or obs.measurement.diameter * bin_um
    pitch_um = (source and source.pitch_um) or obs.measurement.pitch * bin_um
    section = {
        "counts": obs.counts.astype(np.float32),
        "genes": np.array(obs.genes, str),
        "spots_um": spots_um,
        "spot_um": spot_um,
        "pitch_um": pitch_um,
        "bin_um": bin_um,
        "inside": obs.inside,
        "he": obs.he,
        "he_um": obs.he_um,
        "features": he_features(obs),
    }
    np.savez(folder / "section.npz", **section)
    if text:  # R reads no npz
        np.savetxt(folder / "counts.tsv", section["counts"], "%g", "\t")
        np.savetxt(folder / "spots_um.tsv", spots_um, "%.3f", "\t")
        np.savetxt(folder / "inside.tsv", obs.inside, "%d", "\t")
        np.savetxt(folder / "sizes.tsv", [[spot_um, pitch_um, bin_um]], "%.6g", "\t")


def _start(peer: Peer, command: list[str], folder: Path, timeout_s: float) -> None:
    # Without a GPU, as numbers there differ from run to run; OMP_NUM_THREADS is inherited.
    clean = {"CUDA_VISIBLE_DEVICES": "", "MPLBACKEND": "Agg", "PYTHONHASHSEED": "0", "PYTHONNOUSERSITE": "1"}
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")} | clean
    if peer.checkout:
        env["PYTHONPATH"] = str(Path(os.environ[peer.checkout]).resolve())
    with open(folder / "stdout", "w") as out, open(folder / "stderr", "w") as err:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=err, start_new_session=True)
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise PeerFailed(f"{peer.name}: took longer than {timeout_s:g} s") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what it has started, too
            process.wait()
    if code:
        last = "\n".join((folder / "stderr").read_text(errors="replace").strip().splitlines()[-15:])
        raise PeerFailed(f"{peer.name}: exit status {code}\n{last}")


def _maps(peer: Peer, file: Path, shape: tuple[int, ...], inside: np.ndarray) -> np.ndarray:
    if not file.exists():
        raise PeerFailed(f"{peer.name}: wrote no maps.npy")
    maps = np.load(file, allow_pickle=False)
    if maps.shape != shape:
        raise PeerFailed(f"{peer.name}: its maps have the shape {maps.shape}, not {shape}")
    bad = ~np.isfinite(maps[:, inside])
    if bad.any():
        raise PeerFailed(f"{peer.name}: {bad.mean():.0%} of its maps are not finite")
    return np.where(inside, maps, 0)


def to_counts(maps: np.ndarray, obs: Observation) -> np.ndarray:
    """Maps in any unit as expected counts per bin.

    Each gene gets the one factor with which its map, summed over the spots' footprints, has the measured sum. That is
    more than the tools do themselves: it favours them.
    """
    maps = np.maximum(maps, 0).astype(float)
    predicted, measured = degrade(maps, obs.measurement).sum(0), obs.counts.sum(0, dtype=float)
    factor = np.divide(measured, predicted, out=np.zeros_like(measured), where=predicted > 0)
    return (maps * factor[:, None, None]).astype(np.float32)
