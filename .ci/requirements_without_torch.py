"""What the tests need besides torch, one requirement a line, from pyproject.toml."""

import re
import tomllib
from pathlib import Path

EXTRAS = ("benchmark", "dask", "io", "tutorials")  # `train` is about torch alone

table = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
project = table["project"]
groups = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in EXTRAS)]
for requirement in (line for group in [*groups, table["dependency-groups"]["test"]] for line in group):
    if re.match(r"[\w.-]+", requirement)[0] != "torch":
        print(requirement)
