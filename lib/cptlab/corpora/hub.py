"""Data sets of the Hugging Face Hub that the works were trained on, or that stand in for them today.

Names and fields are those of the data cards; ``tokens`` are as published there or in ``published``, counted with the publisher's tokeniser.
No text is fetched here: :func:`ref` gives a source that is streamed when its corpus is built.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cptlab.corpora.parts import SourceRef
from cptlab.errors import ConfigError, CorpusError
from cptlab.revisions import hub_commit

if TYPE_CHECKING:
    from cptlab.corpora.recipe import CorpusRecipe


@dataclass(frozen=True, kw_only=True)
class HubSet:
    """One data set.

    Args:
        hub: its name on the Hub.
        configs: language (ISO 639-1, or ``python``) -> name of the configuration; None: the default one.
        data_dirs: language -> folder of the data set that it is in, where it is not a configuration.
        text_field: field that holds the text.
        origin_field: field that says where a document comes from (an address, a repository, a subset); ``meta.x`` is field x of meta.
        gated: whether one must log in and accept conditions first.
        tokens: as published; None: not published in tokens.
        published: where the number stands.
        by_hand: why it cannot be streamed, and what to do instead; empty: it can.
    """

    hub: str
    configs: Mapping[str, str | None]
    data_dirs: Mapping[str, str] = field(default_factory=dict)
    text_field: str = "text"
    origin_field: str | None = "url"
    licence: str
    gated: bool = False
    tokens: float | None = None
    published: str
    note: str = ""
    by_hand: str = ""


_SCRIPT = "it comes with a loading script, which the library datasets refuses from version 4 on: "
_FINEWEB_2 = {
    "ar": "arb_Arab",
    "bn": "ben_Beng",
    "cs": "ces_Latn",
    "da": "dan_Latn",
    "de": "deu_Latn",
    "el": "ell_Grek",
    "es": "spa_Latn",
    "fa": "fas_Arab",
    "fr": "fra_Latn",
    "hi": "hin_Deva",
    "hu": "hun_Latn",
    "id": "ind_Latn",
    "it": "ita_Latn",
    "ja": "jpn_Jpan",
    "ko": "kor_Hang",
    "nl": "nld_Latn",
    "pl": "pol_Latn",
    "pt": "por_Latn",
    "ro": "ron_Latn",
    "ru": "rus_Cyrl",
    "sv": "swe_Latn",
    "sw": "swh_Latn",
    "tl": "fil_Latn",
    "tr": "tur_Latn",
    "uk": "ukr_Cyrl",
    "vi": "vie_Latn",
    "zh": "cmn_Hani",
}
_ISO = ("ar", "bn", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fr", "hi", "hu", "id", "it", "ja", "ko", "nl", "no", "pl", "pt", "ro")
_ISO += ("ru", "sv", "sw", "th", "tr", "uk", "vi", "zh")

HUB: dict[str, HubSet] = {
    "fineweb": HubSet(
        hub="HuggingFaceFW/fineweb",
        configs={"en": "sample-100BT"},
        licence="ODC-By 1.0, and the terms of use of Common Crawl",
        tokens=15e12,
        published="data card: more than 15 trillion",
        note="config='sample-10BT' is a smaller sample, config='default' the whole.",
    ),
    "fineweb-edu": HubSet(
        hub="HuggingFaceFW/fineweb-edu",
        configs={"en": "sample-100BT"},
        licence="ODC-By 1.0, and the terms of use of Common Crawl",
        tokens=1.3e12,
        published="data card",
        note="The part of FineWeb that a classifier takes for educational. config='sample-10BT' is smaller, config='default' the whole.",
    ),
    "fineweb-2": HubSet(
        hub="HuggingFaceFW/fineweb-2",
        configs=_FINEWEB_2,
        licence="ODC-By 1.0, and the terms of use of Common Crawl",
        published="arXiv 2506.20920: 20 TB, 5 billion documents",
        note="Configurations are named by language and script (ISO 639-3 and 15924). More than 1,000 languages, but English: see fineweb.",
    ),
    "slimpajama": HubSet(
        hub="cerebras/SlimPajama-627B",
        configs={"en": None},
        origin_field="meta.redpajama_set_name",
        licence="that of each subset, see the data card; the books include Books3, since withdrawn elsewhere",
        tokens=627e9,
        published="data card",
        note="Files are .jsonl.zst: install the package zstandard. The origin is RedPajamaCommonCrawl, RedPajamaC4, RedPajamaGithub, "
        "RedPajamaBook, RedPajamaArXiv, RedPajamaWikipedia or RedPajamaStackExchange. MBZUAI-LLM/SlimPajama-627B-DC has the same text "
        "with one folder a subset.",
    ),
    "slimpajama-6b": HubSet(
        hub="DKYoon/SlimPajama-6B",
        configs={"en": None},
        origin_field="meta.redpajama_set_name",
        licence="that of each subset, as for slimpajama",
        tokens=6e9,
        published="data card: roughly",
        note="A sample of slimpajama, 14 GB to download.",
    ),
    "redpajama": HubSet(
        hub="togethercomputer/RedPajama-Data-1T",
        configs={"en": None},
        origin_field="red_pajama_subset",
        licence="that of each subset, see the data card",
        tokens=1.2e12,
        published="data card",
        by_hand=_SCRIPT + "download the files listed in its urls.txt, and give them as files of a source; or take slimpajama",
    ),
    "redpajama-v2": HubSet(
        hub="togethercomputer/RedPajama-Data-V2",
        configs=dict.fromkeys(("de", "en", "es", "fr", "it")),
        text_field="raw_content",
        licence="terms of use of Common Crawl",
        tokens=30e12,
        published="announcement of October 2023: 30 trillion after deduplication, in five languages",
        note="Comes unfiltered, with quality signals to filter by.",
        by_hand=_SCRIPT + "download the files of a snapshot and language as its data card shows, and give them as files of a source with "
        "text_field raw_content; or take fineweb, fineweb-2",
    ),
    "pile": HubSet(
        hub="EleutherAI/pile",
        configs={"en": None},
        origin_field="meta.pile_set_name",
        licence="that of each subset",
        published="arXiv 2101.00027: 825 GiB",
        by_hand="its files were taken off their server in 2023 (Books3): take pile-uncopyrighted",
    ),
    "pile-uncopyrighted": HubSet(
        hub="monology/pile-uncopyrighted",
        configs={"en": None},
        origin_field="meta.pile_set_name",
        licence="that of each subset",
        published="data card: the Pile without Books3, BookCorpus2, OpenSubtitles, YoutubeSubtitles and OpenWebText2",
        note="Files are .jsonl.zst: install the package zstandard. By weight 75 % of the Pile is left.",
    ),
    "c4": HubSet(
        hub="allenai/c4",
        configs={"en": "en"},
        licence="ODC-By, and the terms of use of Common Crawl",
        tokens=156e9,
        published="arXiv 2104.08758",
    ),
    "mc4": HubSet(
        hub="allenai/c4",
        configs={language: language for language in _ISO if language != "en"},
        licence="ODC-By, and the terms of use of Common Crawl",
        tokens=6.3e12,
        published="mT5, arXiv 2010.11934: all 107 languages",
        note="More languages than listed: config='xx'. English stands under c4, or config='en.noclean'.",
    ),
    "culturax": HubSet(
        hub="uonlp/CulturaX",
        configs={language: language for language in _ISO},
        licence="ODC-By for what is of mC4, CC0 for what is of OSCAR",
        gated=True,
        tokens=6.3e12,
        published="data card: all 167 languages",
        note="mC4 and OSCAR, cleaned and deduplicated.",
    ),
    "codeparrot-clean": HubSet(
        hub="codeparrot/codeparrot-clean",
        configs={"python": None},
        text_field="content",
        origin_field="repo_name",
        licence="that of each file, in its field license",
        published="no number of tokens is published",
        note="Python files of GitHub, deduplicated.",
    ),
    "starcoderdata": HubSet(
        hub="bigcode/starcoderdata",
        configs={"python": None},
        data_dirs={"python": "python"},
        text_field="content",
        origin_field="max_stars_repo_name",
        licence="terms of The Stack: that of each file, permissive ones only",
        gated=True,
        tokens=250e9,
        published="data card: 86 languages of programming, issues and commits",
        note="More languages of programming than listed: data_dir='rust'.",
    ),
}


def hub_set(name: str) -> HubSet:
    """Row of :data:`HUB`.

    Raises:
        CorpusError: an unknown name; the message lists the known ones.
    """
    if name not in HUB:
        raise CorpusError(f"data set {name!r} is not listed: use one of {', '.join(sorted(HUB))}, or give hub, config and fields yourself")
    return HUB[name]


def ref(name: str, language: str, revision: str, **changes: Any) -> SourceRef:
    """The source that streams a listed data set.

    Args:
        name: key of :data:`HUB`.
        revision: a commit (better, as ``main`` moves) or tag of the data set.
        changes: other fields of :class:`~cptlab.corpora.parts.SourceRef`, as ``max_documents=1000`` or ``config="sample-10BT"``.
            ``hub`` may be a local folder with files of the same form.

    Raises:
        CorpusError: an unknown name, a language that it lacks (unless ``config`` is given), or a data set that cannot be streamed.
    """
    row = hub_set(name)
    if row.by_hand and "hub" not in changes:
        raise CorpusError(f"data set {name!r} ({row.hub}) cannot be streamed: {row.by_hand}")
    if language not in row.configs and "config" not in changes:
        raise CorpusError(f"data set {name!r} has no language {language!r}: use one of {', '.join(row.configs)}, or give config")
    unknown = sorted(set(changes) - set(SourceRef.__dataclass_fields__))
    if unknown:
        raise CorpusError(f"unknown fields {unknown} of a source: use {', '.join(SourceRef.__dataclass_fields__)}")
    fields = {
        "hub": row.hub,
        "config": row.configs.get(language),
        "data_dir": row.data_dirs.get(language),
        "text_field": row.text_field,
        "origin_field": row.origin_field,
    }
    return SourceRef(**(fields | {"language": language, "revision": revision} | changes))


def pinned(recipe: "CorpusRecipe") -> "tuple[CorpusRecipe, dict[str, str]]":
    """The recipe to read a build by, with a commit in the place of each branch or tag, and these commits, source -> commit.

    A build reads a source more than once: so all its passes read the same text, and the manifest can say which. The corpus keeps the
    fingerprint of the recipe as it is written. Data sets in folders have no commit and are left as they are.

    Warns:
        of each revision that may move, with the commit to write in the recipe.

    Raises:
        CorpusError: a revision that cannot be resolved.
    """
    commits = {}
    for name, source in recipe.sources.items():
        if not source.hub or Path(source.hub).is_dir():
            continue
        where = f"corpus {recipe.name!r}: source {name!r}"
        try:
            commits[name] = hub_commit(source.hub, source.revision, "dataset")
        except ConfigError as error:
            raise CorpusError(f"{where}: {error}") from error
        if commits[name] != source.revision:
            warnings.warn(
                f"{where} names revision {source.revision!r} of {source.hub}, which may move: the text is that of today's commit. To mean "
                f"it for good, write `revision: {commits[name]}` in the recipe (its fingerprint and the ids of its runs then change)",
                stacklevel=2,
            )
    sources = {name: replace(ref, revision=commits[name]) if name in commits else ref for name, ref in recipe.sources.items()}
    return (replace(recipe, sources=sources), commits) if commits else (recipe, {})
