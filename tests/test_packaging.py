"""One version, one set of names, and files that say the same."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import headrace

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_version_has_one_source():
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["scikit-build"]["metadata"]["version"]["input"].endswith("__init__.py")
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", headrace.__version__)


def test_installed_metadata_agrees_with_the_source():
    try:
        installed = metadata.metadata("headrace")
    except metadata.PackageNotFoundError:
        pytest.skip("headrace is not installed here")
    assert installed["Version"] == headrace.__version__
    assert installed["License-Expression"] == "Apache-2.0"
    scripts = metadata.entry_points(group="console_scripts")
    assert scripts["headrace"].value == "headrace.cli.main:main"


def test_constraints_pin_every_direct_dependency():
    pins = {
        line.split("==")[0]
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    }
    project = PROJECT["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    assert pins == {re.split(r"[<>=]", dependency)[0] for dependency in wanted}


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import headrace, sys; print(sorted({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_arrive_when_used_and_others_do_not():
    from headrace.specs.sampling import SamplingParams

    assert headrace.SamplingParams is SamplingParams
    with pytest.raises(AttributeError, match="nonsense"):
        _ = headrace.nonsense
