"""What the tests need besides torch, one requirement a line, from pyproject.toml."""

import re
import tomllib
from pathlib import Path

EXTRAS = ("benchmark", "dask", "io", "tutorials", "test")  # `train` is about torch alone
LEFT_OUT = {"hadmst-sc", "torch"}

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
groups = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in EXTRAS)]
for requirement in (line for group in groups for line in group):
    if re.match(r"[\w.-]+", requirement)[0] not in LEFT_OUT:
        print(requirement)
