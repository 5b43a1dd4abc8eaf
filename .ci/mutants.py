"""Whether the tests notice faults: each mutant of `mutants.toml` is put into a copy of the project, and its tests run.

`make mutants` runs all, `python .ci/mutants.py tissue store` those whose file or name holds one of the words. The exit
status is 1 if fewer than 90 % are caught, and 2 if a mutant no longer fits the source or tests fail without mutants.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path("src") / "hadmst_sc"
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "dist", "_build", "_generated", "shared")
NEEDED = 0.9
SECONDS = 900  # for the tests of one mutant; a mutant that hangs is caught
FAILED, PASSED = 1, 0  # exit status of pytest; all others say that nothing was tested


class Mutant(NamedTuple):
    """One fault."""

    name: str
    file: str  # in the package
    old: str  # occurs once in it
    new: str
    tests: tuple[str, ...]  # arguments of pytest


def read(words: list[str]) -> list[Mutant]:
    """The mutants to run; ends with status 2 if any at all does not fit its file."""
    groups = tomllib.loads((ROOT / ".ci" / "mutants.toml").read_text())["group"]
    mutants = [
        Mutant(name, group["file"], old, new, tuple(group["tests"]))
        for group in groups
        for name, old, new in group["mutants"]
    ]
    stale = [one for one in mutants if (ROOT / PACKAGE / one.file).read_text().count(one.old) != 1]
    for one in stale:
        print(f"{one.file} does not hold this text once, of the mutant '{one.name}': {one.old!r}")
    if stale:
        raise SystemExit(2)
    return [one for one in mutants if not words or any(word in f"{one.file} {one.name}" for word in words)]


def run(copy: Path, tests: tuple[str, ...]) -> int:
    """Exit status of pytest in a copy of the project; that of failed tests where it hangs."""
    own = {"PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    own["HADMST_DATA"] = os.environ.get("HADMST_DATA", str(ROOT.parent / "shared" / "data"))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(command, cwd=copy, env=os.environ | own, capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return FAILED
    if done.returncode not in (FAILED, PASSED):
        print(done.stdout.decode()[-2000:])
    return done.returncode


def check(mutants: list[Mutant], copy: Path) -> int:
    """Run the mutants one by one; the exit status."""
    for tests in dict.fromkeys(one.tests for one in mutants):
        if run(copy, tests) != PASSED:
            print(f"the tests fail without a mutant, or take more than {SECONDS} s: {' '.join(tests)}")
            return 2
    caught, untested = 0, 0
    for one in mutants:
        file, start = copy / PACKAGE / one.file, time.monotonic()
        source = file.read_text()
        file.write_text(source.replace(one.old, one.new))
        status = run(copy, one.tests)
        file.write_text(source)
        caught, untested = caught + (status == FAILED), untested + (status not in (FAILED, PASSED))
        word = {FAILED: "caught", PASSED: "SURVIVED"}.get(status, "NOT TESTED")
        print(f"{word:10} {one.file}: {one.name} ({time.monotonic() - start:.0f} s)", flush=True)
    print(f"{caught} of {len(mutants)} mutants are caught ({caught / len(mutants):.0%})")
    return 2 if untested else int(caught < NEEDED * len(mutants))


def main() -> int:
    """Command line: words that choose mutants."""
    mutants = read(sys.argv[1:])
    if not mutants:
        print("no mutant has these words in its file or name")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=NOT_COPIED)
        return check(mutants, copy)


if __name__ == "__main__":
    sys.exit(main())
