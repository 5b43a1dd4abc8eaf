"""What the project says of itself, it says the same everywhere."""

from __future__ import annotations

import re
import tomllib
from datetime import date

import pytest
import yaml

import hadmst_sc

# Of schema.json in scverse/ecosystem-packages, 18 August 2026.
REQUIRED = {"name", "description", "project_home", "documentation_home", "install", "license", "tags"} | {
    "primary_category",
    "language",
    "category",
}
OPTIONAL = {"tutorials_home", "publications", "contact", "logo", "test_command"}


@pytest.fixture(scope="module")
def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def registry(root):
    return yaml.safe_load((root / "docs" / "meta.yaml").read_text())


def test_entry_of_the_registry_has_its_fields(registry):
    assert REQUIRED <= set(registry) <= REQUIRED | OPTIONAL
    assert registry["primary_category"] == "Spatial" and "spatial transcriptomics" in registry["tags"]
    assert 1 <= len(registry["tags"]) <= 10 and len(registry["contact"]) >= 1


def test_entry_of_the_registry_agrees_with_the_project(registry, project):
    assert registry["name"] == hadmst_sc.__name__
    assert registry["install"] == {"pypi": project["name"]}
    assert registry["license"] == project["license"]
    assert registry["description"].startswith(project["description"].rstrip("."))
    assert registry["project_home"] == project["urls"]["Source"]
    assert registry["documentation_home"] == project["urls"]["Documentation"]
    assert registry["tutorials_home"].startswith(project["urls"]["Documentation"])


def test_entry_of_the_registry_follows_its_rules_for_addresses(registry):
    homes = [registry[name] for name in ("project_home", "documentation_home", "tutorials_home")]
    assert len(set(homes)) == 3 and all(home.startswith("https://") for home in homes)
    assert not [home for home in homes if "/en/" in home], "`/page/` stands for the default version"


def test_citation_agrees_with_the_project(root, project):
    citation = yaml.safe_load((root / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["message"] and citation["title"].startswith("hadmst_sc")
    assert citation["version"] == hadmst_sc.__version__
    assert citation["license"] == project["license"]
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in project["authors"]]
    assert citation["repository-code"] == project["urls"]["Source"]
    assert citation["url"] == project["urls"]["Documentation"]


def test_changelog_begins_with_what_is_not_released_and_then_this_version(root):
    citation = yaml.safe_load((root / "CITATION.cff").read_text())
    heads = re.findall(r"^## \[(.+?)\](?: - (.+))?$", (root / "CHANGELOG.md").read_text(), re.M)
    assert heads[:2] == [("Unreleased", ""), (hadmst_sc.__version__, str(citation["date-released"]))]
    assert [day for _, day in heads[1:]] == sorted((day for _, day in heads[1:]), key=date.fromisoformat, reverse=True)


def test_every_version_of_python_that_is_promised_is_tested(root, project):
    promised = {
        c.rsplit(" ", 1)[1] for c in project["classifiers"] if c.startswith("Programming Language :: Python :: 3.")
    }
    workflow = yaml.safe_load((root / ".github" / "workflows" / "ci.yml").read_text())
    assert promised == set(workflow["jobs"]["test"]["strategy"]["matrix"]["python"]) == {"3.11", "3.12", "3.13", "3.14"}
    assert project["requires-python"] == ">=3.11"


def test_continuous_integration_is_the_script_of_the_project(root):
    workflow = yaml.safe_load((root / ".github" / "workflows" / "ci.yml").read_text())
    commands = [step["run"] for step in workflow["jobs"]["test"]["steps"] if "run" in step]
    assert commands == [".ci/run"]


def test_a_report_of_an_error_asks_for_what_is_needed_to_find_it(root):
    folder = root / ".github" / "ISSUE_TEMPLATE"
    form = yaml.safe_load((folder / "bug_report.yml").read_text())
    asked = str([field["attributes"] for field in form["body"]])
    assert "hadmst-sc doctor" in asked and "print(hd.pp.validate(" in asked and "session_info2" in asked
    ids = [field["id"] for field in form["body"] if field["type"] != "markdown"]
    assert len(ids) == len(set(ids))
    assert {path.name for path in folder.iterdir()} == {"bug_report.yml", "feature_request.yml", "config.yml"}
