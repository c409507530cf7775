"""The files for who cites, or changes, the package."""

import re
from pathlib import Path

import yaml

from llmdpd_torchrl import __version__
from tests.test_layers import ORDER

ROOT = Path(__file__).parents[1]


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == __version__


def test_the_changelog_begins_with_this_version():
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert versions[0] == __version__


def test_contributors_read_the_order_of_packages_that_the_tests_check():
    section = (ROOT / "CONTRIBUTING.md").read_text().split("## Layers")[1].split("\n\n")[2]
    assert tuple(re.findall(r"`(\w+)`", section)) == ORDER
