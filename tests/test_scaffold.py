"""``cptlab new-study``: what it writes runs, and what it refuses it leaves untouched."""

import os
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import nbformat
import pytest
import yaml

from cptlab import claims, cli, paths, scaffold
from cptlab.errors import ConfigError
from cptlab.study import profile_names

REPOSITORY = Path(__file__).resolve().parents[1]
NAME = "13_my_question"


@pytest.fixture
def clone(lab) -> Path:
    """The parts of a clone that a study is written into, and the notebook whose settings are its model's."""
    shutil.copytree(REPOSITORY / "lib" / "cptlab" / "profiles", lab / "lib" / "cptlab" / "profiles")
    shutil.copyfile(REPOSITORY / "claims.yaml", lab / "claims.yaml")
    shutil.copyfile(REPOSITORY / "notebooks" / "00_first_run.ipynb", lab / "notebooks" / "00_first_run.ipynb")
    (lab / "tests").mkdir()
    return lab


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_written(clone, capsys):
    before = files(clone)
    assert cli.main(["new-study", NAME]) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    after = files(clone)
    assert {path for path in after if after[path] != before.get(path)} == set(written)
    profiles = {clone / "lib" / "cptlab" / "profiles" / f"{profile}.yaml" for profile in profile_names()}
    own = {clone / "notebooks" / f"{NAME}.ipynb", clone / "tests" / f"test_{NAME}.py"}
    assert set(written) == profiles | own | {clone / "claims.yaml"}
    for path in set(written) - own:
        assert after[path].startswith(before[path]), f"{path}: comments and all else stay as they were"
    for path in profiles:
        sections = yaml.safe_load(after[path])["notebooks"]
        assert list(sections)[-1] == NAME and sections[NAME]["size"] == sections["00_first_run"]["size"]
    claim = claims.load()["L13.1"]
    assert claim.notebook == NAME and [test.quantity for test in claim.tests] == ["gain"]

    text = after[clone / "notebooks" / f"{NAME}.ipynb"].decode()
    book = nbformat.reads(text, nbformat.NO_CONVERT)
    assert nbformat.writes(book) + "\n" == text, "it is written as Jupyter does"
    tags = [tag for cell in book.cells for tag in cell.metadata.get("tags", ())]
    assert tags == ["parameters", "grid", "figure", "claim"] and book.cells[0].source.startswith("# My question\n")
    everything = text + after[clone / "tests" / f"test_{NAME}.py"].decode()
    assert "new_study" not in everything and "L0.1" not in everything and "00_gain" not in everything and "figures 00" not in everything


def test_a_second_study_and_its_claim(clone):
    scaffold.new_study(NAME)
    scaffold.new_study("07_another")
    assert list(claims.load())[-2:] == ["L13.1", "L7.1"]
    (clone / "claims.yaml").write_text("[]\n")
    scaffold.new_study("08_first_claim")
    assert list(claims.load()) == ["L8.1"]


@pytest.mark.parametrize(
    "name", ["my_question", "13", "13_", "3_few", "13_My", "13_my-question", "13_my question", "../13_x", "13__x", "13_x.ipynb"]
)
def test_names_that_are_refused(clone, name):
    before = files(clone)
    with pytest.raises(ConfigError, match="cannot name a study.*13_my_question"):
        scaffold.new_study(name)
    assert files(clone) == before


def remove(path: Path, *_) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("00_other", None, r"00_first_run.ipynb exists: choose another number, 01 is free"),
        (NAME, ("tests/test_13_my_question.py", "mine"), "test_13_my_question.py exists"),
        (NAME, ("claims.yaml", "- id: L13.1\n"), "claims.yaml has a claim L13.1 already"),
        (NAME, ("claims.yaml", "[{id: L1.1}]\n"), "claims.yaml: no claim can be added at its end"),
        (NAME, ("claims.yaml", "a: [1"), "claims.yaml is not valid YAML"),
        (NAME, ("claims.yaml", "a: 1"), "claims.yaml: expected a list"),
        (NAME, ("lib/cptlab/profiles/smoke.yaml", "- 1\n"), "smoke.yaml is not a profile"),
        (NAME, ("lib/cptlab/profiles/smoke.yaml", "notebooks: {x: {}}\n"), "smoke.yaml has no section for 00_first_run"),
        (NAME, ("lib/cptlab/profiles/smoke.yaml", "notebooks: {00_first_run: {}, 13_my_question: {}}\n"), "has a section 13_my_question"),
    ],
)
def test_what_is_taken_or_does_not_fit_is_refused_before_anything_is_written(clone, name, spoil, message):
    if spoil:
        (clone / spoil[0]).write_text(spoil[1])
    before = files(clone)
    with pytest.raises(ConfigError, match=message):
        scaffold.new_study(name)
    assert files(clone) == before


def test_a_section_is_added_only_where_it_belongs(clone):
    path = clone / "lib" / "cptlab" / "profiles" / "smoke.yaml"
    path.write_text(f"{path.read_text()}description: moved\n".replace("description: Two", "# Two", 1))
    before = files(clone)
    with pytest.raises(ConfigError, match="smoke.yaml: no section can be added at its end; make notebooks its last part"):
        scaffold.new_study(NAME)
    assert files(clone) == before


def test_a_profile_that_extends_another_has_the_section_from_there(clone):
    path = clone / "lib" / "cptlab" / "profiles" / "mine.yaml"
    path.write_text("extends: laptop\n")
    assert path not in scaffold.new_study(NAME) and path.read_text() == "extends: laptop\n"


def test_outside_a_clone(lab):
    with pytest.raises(ConfigError, match="is not a clone of cptlab.*set CPTLAB_ROOT"):
        scaffold.new_study(NAME)
    assert [path.name for path in files(lab)] == ["claims.yaml"]


def test_all_or_nothing(clone, monkeypatch):
    """A disk that fills up while the last file is written."""
    before, write = files(clone), Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if ".ipynb" in path.name:
            write(path, data[:100])
            raise OSError(28, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        scaffold.new_study(NAME)
    assert files(clone) == before


def test_template_is_in_the_package():
    names = {path.name for path in resources.files("cptlab").joinpath("template").iterdir()}
    assert names >= {"notebook.ipynb", "profile.yaml", "claim.yaml", "test.py"}


def test_as_a_stranger(tmp_path):
    """In a clone of its own: write a study, then run its test, which trains it at the smallest profile, and the rules for notebooks."""
    clone = tmp_path / "clone"
    (clone / "notebooks").mkdir(parents=True)
    shutil.copytree(REPOSITORY / "lib", clone / "lib", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    (clone / "tests").mkdir()
    for name in ("claims.yaml", "pyproject.toml", "notebooks/00_first_run.ipynb", "tests/conftest.py", "tests/test_notebooks.py"):
        shutil.copyfile(REPOSITORY / name, clone / name)
    here = {"CPTLAB_ROOT": str(clone), "CPTLAB_CACHE": str(paths.cache_dir()), "PYTHONPATH": str(clone / "lib")}

    def call(*arguments: str) -> None:
        done = subprocess.run([sys.executable, "-m", *arguments], cwd=clone, env=os.environ | here, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]

    call("cptlab.cli", "new-study", NAME)
    call("pytest", "-q", "-p", "no:cacheprovider", f"tests/test_{NAME}.py")
    call("pytest", "-q", "-p", "no:cacheprovider", "tests/test_notebooks.py", "-k", f"committed and {NAME}")
    call("ruff", "check", "--no-cache", ".")
