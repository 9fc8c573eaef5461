"""A folder of one's own: a file in it that cannot be read is set aside, named and counted; a file that is named is an error."""

import bz2
import errno
import gzip
import json
import lzma
import os
import re
from pathlib import Path

import pandas
import pytest

from cptlab import cli, corpora
from cptlab.corpora import readers
from cptlab.corpora.parts import SourceRef
from cptlab.corpora.quarantine import Note, Quarantine, UnreadableFile
from cptlab.corpora.readers import documents
from cptlab.errors import CorpusError

TEXTS = [f"good {i}, told in the words of line {i * i}" for i in range(80)]


def rows(texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def damaged_parquet(path):
    pandas.DataFrame({"text": TEXTS}).to_parquet(path)
    path.write_bytes(path.read_bytes()[:-30])


def other_columns(path):
    pandas.DataFrame({"body": TEXTS}).to_parquet(path)


def cut(packed):
    return packed[: len(packed) * 2 // 3]


NOISE = rows(os.urandom(40).hex() for _ in range(2000))  # its first lines can be read from what is left of the torn file
# name -> how it is made, its reason, a part of what is said of it, the part with a dot for what differs between versions of libraries
BAD = {
    "torn.jsonl.gz": (cut(gzip.compress(NOISE)), "damaged", r"cannot be read after line \d+ \(Compressed file ended"),
    "torn.jsonl.bz2": (cut(bz2.compress(NOISE)), "damaged", r"cannot be read after line \d+ \("),
    "torn.txt.xz": (cut(lzma.compress(NOISE)), "damaged", r"cannot be read after line \d+ \("),
    "plain.txt.gz": (b"not compressed at all", "damaged", r"cannot be read after line 0 \(Not a gzipped file"),
    "program.txt": (b"\x7fELF\2\1\1\n\0\0\0\0" + b"\n" * 90, "binary", "line 2: holds NUL bytes"),
    "wide.jsonl": (rows(TEXTS).decode().encode("utf-16"), "binary", "line 1: holds NUL bytes"),
    "latin.txt": ("\n\n".join(["café"] * 30).encode("latin-1"), "malformed", r"30 of 30 records are malformed \(not-utf8 30\)"),
    "table.jsonl": (b"a,b,c\n" * 50, "malformed", r"50 of 50 records are malformed \(not-json 50\)"),
    "empty.md": (b"", "empty-file", "holds no document"),
    "m.parquet": (damaged_parquet, "damaged", "not a readable parquet file"),
    "n.parquet": (other_columns, "no-column", r"no columns \['text'\]; it has body"),
    "gone.txt": (lambda path: path.symlink_to("nowhere.txt"), "unreadable", r"cannot be read \(No such file or directory\)"),
    "gone too.txt": (lambda path: path.symlink_to("nowhere.txt"), "unreadable", r"cannot be read \(No such file or directory\)"),
    "loop.txt": (lambda path: path.symlink_to("loop.txt"), "unreadable", r"cannot be read \(Too many levels of symbolic links\)"),
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CPTLAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """A folder with one good file, the second of those that are read."""
    path = tmp_path / "own"
    path.mkdir()
    (path / "good.jsonl").write_bytes(rows(TEXTS))
    return path


def put(folder, *names):
    for name in names:
        made = BAD[name][0]
        made(folder / name) if callable(made) else (folder / name).write_bytes(made)
    return folder


def make(paths, clean=None):
    return corpora.local_recipe({"own": paths}, vocab=300, validation={"fraction": 0.2}, clean=clean)


CLEANED = {"steps": {"exact": {}}}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_read_leaves_the_others(folder, name):
    good = corpora.open_corpus(make(folder, CLEANED)).shard_hashes
    found = corpora.build_corpus(make(put(folder, name), CLEANED), say=lambda text: None)
    [row] = found["set_aside"]
    assert (row["source"], row["file"], row["reason"]) == ("own", str(folder / name), BAD[name][1])
    assert re.match(BAD[name][2], row["detail"]) and str(folder) not in row["detail"]
    # Not a document of it is in the corpus, not even those before the damage.
    assert corpora.open_corpus(make(folder, CLEANED)).shard_hashes == good
    assert found["cleaning"]["quarantine"]["own"]["records"] == 80 and found["cleaning"]["quarantine"]["own"]["bad"] == 0
    assert corpora.report(make(folder, CLEANED))["set_aside"] == [row]
    for wanted in (name, f"{folder / name}", f"{name}:7"):
        answer = corpora.why(make(folder, CLEANED), wanted)
        assert (answer["id"], answer["kept"], answer["steps"][0]["rule"]) == (str(folder / name), False, row["reason"])


def test_uncleaned_text_is_read_so_too(folder):
    good = corpora.open_corpus(make(folder)).shard_hashes
    names = sorted(name for name in BAD if BAD[name][1] != "malformed")
    recipe = make(put(folder, *names))
    with pytest.warns(
        UserWarning, match=rf"files that could not be read were set aside, {len(names)} in all: {folder}/empty\.md: holds no document"
    ):
        corpus = corpora.open_corpus(recipe)
    assert corpus.shard_hashes == good
    found = corpora.build_corpus(recipe)
    assert not found["built"] and found["cleaning"] is None
    assert [(Path(row["file"]).name, row["reason"]) for row in found["set_aside"]] == [(name, BAD[name][1]) for name in names]
    # A malformed line is what it was without a cleaning: an error.
    with pytest.raises(CorpusError, match=r"latin\.txt:1: not valid UTF-8"):
        corpora.open_corpus(make(put(folder, "latin.txt")))
    with pytest.raises(CorpusError, match=r"latin\.txt:1: not valid UTF-8"):
        corpora.open_corpus(make(folder, {"steps": {}, "quarantine": 0}))


@pytest.mark.parametrize("clean", [None, CLEANED])
def test_a_folder_without_a_readable_file_is_an_error_that_names_all(folder, clean):
    (folder / "good.jsonl").unlink()
    names = ("torn.jsonl.gz", "program.txt", "gone.txt")
    with pytest.raises(CorpusError, match="none of the 3 files can be read") as caught:
        corpora.open_corpus(make(put(folder, *names), clean))
    for name in names:
        assert re.search(f"{folder / name}: {BAD[name][2]}", str(caught.value))
    many = [folder / f"{number:02}.txt" for number in range(30)]
    for path in many:
        path.touch()
    with pytest.raises(CorpusError, match=rf"none of the 33 files can be read: {many[0]}: .*{many[9]}: [^;]*; and 23 more$"):
        corpora.open_corpus(make(folder, clean))


@pytest.mark.parametrize("clean", [None, CLEANED])
@pytest.mark.parametrize("name", [name for name in BAD if name != "empty.md"])
def test_a_file_that_is_named_stays_an_error(folder, name, clean):
    put(folder, name)
    says = "does not exist" if BAD[name][1] == "unreadable" else "not valid UTF-8" if (name, clean) == ("latin.txt", None) else BAD[name][2]
    says = "not valid JSON" if (name, clean) == ("table.jsonl", None) else says.removeprefix("line ")
    for paths in (folder / name, [folder / name], [folder / "good.jsonl", folder / name]):
        with pytest.raises(CorpusError, match=says) as caught:
            corpora.open_corpus(make(paths, clean))
        assert str(folder / name) in str(caught.value) and "none of" not in str(caught.value)
    # Beside a folder, too.
    other = folder.parent / "other"
    other.mkdir()
    (other / "more.jsonl").write_bytes(rows(["more", *TEXTS]))
    with pytest.raises(CorpusError, match=says):
        corpora.open_corpus(make([other, folder / name], clean))


def test_no_permission_to_read(folder, monkeypatch):
    (folder / "private.txt").write_text("one\n\ntwo\n")
    opened, closed = Path.open, {"private.txt"}

    def refuse(path, *args, **settings):
        if path.name in closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *args, **settings)

    monkeypatch.setattr(Path, "open", refuse)
    refused = make(folder, CLEANED)
    [row] = corpora.build_corpus(refused, say=lambda text: None)["set_aside"]
    assert row["reason"] == "unreadable" and row["detail"].startswith("cannot be read (Permission denied): check its permissions")
    with pytest.raises(CorpusError, match=r"private\.txt cannot be read \(Permission denied\): check its permissions"):
        make(folder / "private.txt")
    closed.clear()
    allowed = make(folder, CLEANED)
    assert allowed.fingerprint != refused.fingerprint
    assert corpora.build_corpus(allowed)["set_aside"] == []
    closed.add("private.txt")  # since the recipe was made: what its fingerprint stands for is not there
    with pytest.raises(CorpusError, match="Permission denied"):
        list(documents(allowed.sources["own"], Quarantine()))
    closed.clear()
    with pytest.raises(CorpusError, match=r"private\.txt has changed since the recipe was made"):
        list(documents(refused.sources["own"], Quarantine()))


def test_a_disk_that_fails_is_no_reason_to_set_aside(folder, monkeypatch):
    ref = make(folder, CLEANED).sources["own"]

    def fails(path, ref):
        yield 1, "1", None
        raise readers.unreadable(OSError(errno.EIO, "Input/output error"), "by content", "by system")

    monkeypatch.setattr(readers, "_read_jsonl", fails)
    with pytest.raises(CorpusError, match="by system") as caught:
        list(documents(ref, Quarantine()))
    assert not isinstance(caught.value, UnreadableFile)
    assert isinstance(readers.unreadable(OSError("bad data"), "by content", "by system"), UnreadableFile)


def test_a_folder_that_cannot_be_listed_is_told(folder, monkeypatch):
    (folder / "closed").mkdir()
    scan = os.scandir

    def refuse(path):
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.warns(UserWarning, match=rf"folder {folder}/closed cannot be listed \(Permission denied\) and is not read"):
        assert make(folder).sources["own"].files == (str(folder / "good.jsonl"),)


def test_a_name_that_is_not_utf8(folder):
    odd = os.fsdecode(os.fsencode(folder) + b"/caf\xe9.txt")
    try:
        with open(odd, "w") as stream:
            stream.write("text")
    except OSError:
        pytest.skip("a file system that has no such names")
    [row] = corpora.build_corpus(make(folder, CLEANED), say=lambda text: None)["set_aside"]
    assert row["reason"] == "misnamed" and row["file"] == f"{folder}/caf\\udce9.txt"


def test_identity_is_of_the_files_alone(folder):
    # Computed before files could be set aside: another value makes every corpus of a user's own folder another one.
    recipes = [make(paths, clean) for clean in (None, CLEANED) for paths in (folder, [folder / "good.jsonl"])]
    assert [recipe.fingerprint[:16] for recipe in recipes] == ["395c00e9a1832c6d"] * 2 + ["0282afbffdf4730b"] * 2
    assert recipes[0].sources["own"].found and not recipes[1].sources["own"].found
    before = recipes[2].fingerprint
    assert make(put(folder, "torn.jsonl.gz"), CLEANED).fingerprint != before
    with pytest.raises(CorpusError, match="found names b: give some of files"):
        SourceRef(files=(str(folder / "good.jsonl"),), found=("b",))


def test_readers_give_their_own_count(folder):
    ref = make(put(folder, "latin.txt", "torn.txt.xz"), CLEANED).sources["own"]
    found = Quarantine(limit=0.3)
    assert [document.text for document in documents(ref, found)] == TEXTS
    assert [(Path(note.file).name, note.number, note.reason) for note in found.files] == [
        ("latin.txt", 0, "malformed"),
        ("torn.txt.xz", 0, "damaged"),
    ]
    assert (found.records, found.bad, found.notes) == (80, 0, []) and isinstance(found.files[0], Note)
    assert [note["reason"] for note in json.loads(json.dumps(found.summary()))["files"]] == ["malformed", "damaged"]
    with pytest.raises(CorpusError, match=r"latin\.txt:1"):  # without anybody to tell, nothing is set aside
        list(documents(ref))


def test_the_command_line_names_what_it_set_aside(folder, capsys):
    put(folder, "torn.jsonl.gz", "program.txt", "gone.txt", "gone too.txt")
    build = ["corpora", "build", "--source", str(folder), "--name", "own", "--vocab", "300", "--steps"]
    for steps in ("none", "exact"):
        for _ in "built", "served":
            assert cli.main([*build, steps]) == 0
            said = capsys.readouterr()
            assert "own: files set aside: 2 unreadable, 1 binary, 1 damaged\n" in said.err
            assert f"own: text: {folder}/program.txt: line 2: holds NUL bytes" in said.err
            assert f"own: text: {folder}/torn.jsonl.gz: cannot be read after line " in said.err
    name = said.out.split("corpora report ")[1].split()[0]
    for options in ([], ["--steps"]):
        assert cli.main(["corpora", "report", name, *options]) == 0
        said = capsys.readouterr().out
        assert f"own: text: {folder}/gone.txt: cannot be read (No such file" in said and "own: files set aside: 2 unr" in said
    assert cli.main(["corpora", "report", name, "--json"]) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert [row["reason"] for row in found["set_aside"]] == ["unreadable", "unreadable", "binary", "damaged"]
    assert cli.main(["corpora", "report", name, "--why", "torn.jsonl.gz:3"]) == 0
    assert "set aside, it could not be read" in capsys.readouterr().out
    for number in range(40):
        (folder / f"{number:02}.md").touch()
    assert cli.main([*build, "exact"]) == 0
    said = capsys.readouterr().err
    assert "files set aside: 40 empty-file, 2 unreadable, 1 binary, 1 damaged\n" in said and "19.md" in said and "20.md" not in said
    assert "own: and 24 more: cptlab corpora report " in said
