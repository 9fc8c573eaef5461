"""The lock, the conda environment and the package's bounds say the same thing, and it is what is installed."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

REPOSITORY = Path(__file__).resolve().parents[1]
LINES = [line for line in (REPOSITORY / "requirements.lock").read_text().splitlines() if line and not line.startswith("#")]
LOCK = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in LINES if "==" in line}
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
BOUNDS = [Requirement(text) for text in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"])]


def test_lock_is_exact():
    for line in LINES:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line), f"{line!r}: one name==version a line, no local tag, no address"
    assert len(LOCK) == len(LINES), "a package is locked twice"
    assert LOCK["torch"] == "2.13.0"
    assert not [name for name in LOCK if re.match(r"nvidia|triton|cuda|cptlab|pip$", name)], (
        "GPU libraries come with the CUDA build of torch"
    )


def test_lock_satisfies_the_bounds():
    for bound in BOUNDS:
        version = LOCK.get(canonicalize_name(bound.name))
        assert version is not None, f"{bound.name} is not in requirements.lock"
        assert bound.specifier.contains(version), f"pyproject.toml asks for {bound}, the lock holds {version}"


def test_lock_is_what_is_installed():
    different = {}
    for name, version in LOCK.items():
        try:
            found = Version(metadata.version(name)).public
        except metadata.PackageNotFoundError:
            found = None
        if found is None or Version(found) != Version(version):
            different[name] = (version, found)
    assert not different, f"(locked, installed) differ: run make install, or make the lock anew: {different}"


def test_lock_is_complete():
    """Whatever a locked package needs on this system is locked too."""
    missing = set()
    for name in LOCK:
        for text in metadata.requires(name) or []:
            need = Requirement(text)
            if need.marker is not None and not need.marker.evaluate({"extra": ""}):
                continue
            need_name = canonicalize_name(need.name)
            if need_name not in LOCK and not re.match(r"nvidia|triton|cuda", need_name):
                missing.add(f"{need_name} (for {name})")
    assert not missing


def test_conda_environment_is_the_lock():
    environment = yaml.safe_load((REPOSITORY / "environment.yml").read_text())
    assert environment["dependencies"] == ["python=3.11", "pip", {"pip": ["-r requirements.lock", "-e ."]}]
    minor = environment["dependencies"][0].partition("=")[2]
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(minor)
    assert f"Python {minor}" in (REPOSITORY / "requirements.lock").read_text().splitlines()[0]


@pytest.mark.parametrize("name", ["Makefile", "requirements.lock", "environment.yml", "pyproject.toml", ".ci/run"])
def test_no_addresses(name):
    assert "://" not in (REPOSITORY / name).read_text(), "the user chooses the package index"


def test_citation_names_the_package():
    from cptlab import __version__

    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert str(citation["version"]) == __version__
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in (REPOSITORY / "LICENSE").read_text()[:200]
