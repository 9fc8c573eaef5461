"""Published shares of domains as weights of one's own sources."""

import pytest

from cptlab.corpora.mixtures import MIXTURES, NOT_PUBLIC, mixture
from cptlab.errors import ConfigError

TOTALS = dict.fromkeys(MIXTURES, 100) | {"redpajama": 1210}  # per cent; billions of tokens, which the card adds up to 1.2 trillion


@pytest.mark.parametrize("name", sorted(MIXTURES))
def test_weights_add_up_to_the_whole_of_the_publication_and_are_shares_of_it(name):
    row, total = MIXTURES[name], TOTALS[name]
    assert sum(row.weights.values()) == pytest.approx(total, abs=0.05)  # as the publication rounds them
    assert mixture(name) == pytest.approx({domain: weight / total for domain, weight in row.weights.items()}, rel=1e-3)
    assert ("per cent" in row.published) == (total == 100) or name == "zh-en-code"


def test_shares_are_those_of_the_publications():
    assert MIXTURES["llama-1"].shares["common-crawl"] == pytest.approx(0.67)
    assert MIXTURES["redpajama"].shares["stack-exchange"] == pytest.approx(20 / 1210)
    assert MIXTURES["slimpajama"].weights == MIXTURES["llama-1"].weights
    assert len(MIXTURES["pile"].weights) == 22
    left = set(MIXTURES["pile"].weights) - {"books3", "bookcorpus2", "opensubtitles", "youtube-subtitles", "openwebtext2"}
    assert sum(MIXTURES["pile"].shares[domain] for domain in left) == pytest.approx(0.75, abs=0.001)


def test_domains_become_sources_and_add_up():
    domains = {"general-knowledge": "web", "maths-and-reasoning": "web", "code": "code", "multilingual": "zh"}
    assert mixture("llama-3", domains) == pytest.approx({"web": 0.75, "code": 0.17, "zh": 0.08})


def test_a_domain_without_a_source_is_left_out_only_when_asked():
    domains = {"chinese": "zh", "english": "en"}
    with pytest.raises(ConfigError, match=r"\{'code': 0.1\}.*missing='renormalise'"):
        mixture("zh-en-code", domains)
    assert mixture("zh-en-code", domains, missing="renormalise") == pytest.approx({"zh": 0.5, "en": 0.5})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("llama-9",), "use one of llama-1, llama-3, minicpm-stable"),
        (("llama-3", {"code": "a", "cod": "b"}), r"has no domains \['cod'\]: it has general-knowledge"),
        (("llama-3", {}, "renormalise"), "domains is empty"),
        (("llama-3", None, "drop"), "use 'error' or 'renormalise'"),
        (("minicpm-decay",), "not public in numbers.*Figure 11"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        mixture(*arguments)


def test_a_mixture_is_either_given_or_not_public():
    assert not set(MIXTURES) & set(NOT_PUBLIC)
