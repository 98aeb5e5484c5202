"""CITATION.cff can be read, names the version that is installed, and the paper."""

import configparser
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def test_the_citation_names_this_version_and_the_paper():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert cited["version"] == setup["metadata"]["version"] and cited["license"] == setup["metadata"]["license"]
    paper, = cited["references"]
    assert paper["url"].endswith("arxiv.org/abs/2212.05034") and len(paper["authors"]) == 5
