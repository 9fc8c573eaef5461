"""What made a record, and the warning when something else would make it now."""

import os
import re
import subprocess
import warnings

import pytest

from cptlab.runs import provenance
from cptlab.runs.provenance import DriftWarning


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.setenv("CPTLAB_ROOT", str(tmp_path))
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, "/dev/null")
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # set when the tests run from a git hook
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/code.py").write_text("x = 1\n")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/record.json").write_text("{}\n")
    (tmp_path / "requirements.lock").write_text("numpy==1\n")

    def git(*arguments):
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    provenance._fixed.cache_clear()
    yield tmp_path
    provenance._fixed.cache_clear()


def dirty(folder):
    return provenance._code(folder)["dirty_diff_sha256"]


def test_collect(repository):
    found = provenance.collect()
    assert set(found) == {"commit", "dirty_diff_sha256", "lock_sha256", "versions", "machine", "date"}
    assert re.fullmatch("[0-9a-f]{40}", found["commit"])
    assert found["dirty_diff_sha256"] is None
    assert re.fullmatch("[0-9a-f]{64}", found["lock_sha256"])
    assert set(found["versions"]) == {"python", "torch", "deepspeed", "transformers", "tokenizers", "datasets", "numpy"}
    assert set(found["machine"]) == {"platform", "cpu", "cores", "memory_gib", "accelerator"}
    assert 1 <= found["machine"]["cores"] <= os.cpu_count()
    assert found["machine"]["memory_gib"] == pytest.approx(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, abs=0.1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", found["date"])
    found["versions"]["numpy"] = found["machine"]["cpu"] = "changed by the caller"
    assert "changed by the caller" not in (provenance.collect()["versions"]["numpy"], provenance.collect()["machine"]["cpu"])


def test_changed_code_is_dirty_and_new_results_are_not(repository):
    (repository / "runs/record.json").write_text('{"changed": 1}\n')
    (repository / "runs/new.json").write_text("{}\n")
    assert dirty(repository) is None
    (repository / "lib/code.py").write_text("x = 2\n")
    changed = dirty(repository)
    assert changed == dirty(repository)
    (repository / "lib/new.py").write_text("y = 1\n")
    untracked = dirty(repository)
    (repository / "lib/new.py").write_text("y = 2\n")
    assert len({None, changed, untracked, dirty(repository)}) == 4


def test_without_git_or_lock(tmp_path, monkeypatch):
    monkeypatch.setenv("CPTLAB_ROOT", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    found = provenance.collect()
    assert found["commit"] is None
    assert found["dirty_diff_sha256"] is None
    assert found["lock_sha256"] is None
    assert found["machine"]["accelerator"] is None


def record(torch="2.13.0+cpu", numpy="2.4.0", **more):
    return {"provenance": {"versions": {"torch": torch, "numpy": numpy, "datasets": "1"}} | more}


NOW = {"versions": {"torch": "2.13.0+cu126", "numpy": "2.4.0", "datasets": "2", "transformers": None, "deepspeed": "0.19.8"}}


def test_drift_fields():
    assert provenance.drift(record(), NOW) == {}  # another build of the same version; datasets only builds corpora
    assert provenance.drift(record(torch="2.12.0", numpy="2.3.0"), NOW) == {
        "torch": ("2.12.0", "2.13.0+cu126"),
        "numpy": ("2.3.0", "2.4.0"),
    }
    assert provenance.drift({}, NOW) == {}
    assert provenance.drift({"provenance": {"versions": provenance.versions()}}) == {}


def test_drift_of_shards():
    now = NOW | {"corpus_shards": {"train/en.bin": "a", "train/fr.bin": "b"}}
    assert provenance.drift(record(corpus_shards={"train/en.bin": "a", "train/zh.bin": "z"}), now) == {}
    assert provenance.drift(record(corpus_shards={"train/en.bin": "c"}), now) == {"corpus_shards.train/en.bin": ("c", "a")}


def test_one_warning_for_many_runs():
    records = [record(), record(torch="2.12.0"), record(torch="2.12.0"), record(torch="2.11.0", numpy="2.3.0")]
    with pytest.warns(DriftWarning) as caught:
        fields = provenance.warn_drift(records, NOW)
    assert len(caught) == 1
    text = str(caught[0].message)
    assert "3 of the runs" in text
    assert "torch 2.12.0 -> 2.13.0+cu126 (2)" in text
    assert "numpy 2.3.0 -> 2.4.0 (1)" in text
    assert set(fields) == {"torch", "numpy"}


def test_no_warning_without_drift():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert provenance.warn_drift([record(), record()], NOW) == {}
