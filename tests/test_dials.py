"""Dials take the place of the profile's values, or say what is wrong with them."""

import pytest

from cptlab import dials
from cptlab.errors import ConfigError
from cptlab.study import open_study

SETTINGS = {
    "near": "fr",
    "far": "zh",
    "size": "0.35M",
    "arm_tokens": 4_000_000,
    "replay": 0.2,
    "lr": {"base": 0.002, "target": 0.004},
    "one_epoch_seeds": [0, 1],
    "never_seeds": [],
    "sizes": {"0.09M": {"seeds": [0, 1], "lr": {"base": 0.008}}, "0.35M": {"seeds": [0], "lr": {"base": 0.002}}},
    "kind": "cosine",
    "shares": [0.0, 0.5],
    "trace": {"size": "0.17M", "seeds": [0], "share": 0.01},
    "sweep": {"tokens": 1000, "rates": {"0.35M": [0.001]}},
}


def turn(**given):
    return dials.apply(given, SETTINGS, "profile laptop, notebook 02")


def test_none_is_the_profiles_value():
    assert turn(near=None, seeds=None) == (SETTINGS, {})


def test_the_profiles_own_value_turns_nothing():
    own = {name: SETTINGS[name] for name in ("near", "lr", "arm_tokens")} | {"sizes": list(SETTINGS["sizes"])}
    assert turn(**own) == (SETTINGS, {})


def test_values_take_the_place_of_the_profiles():
    settings, turned = turn(near="de", seeds=[3], sizes=["0.35M"], lr={"target": 0.01}, replay=0, arm_tokens=2e6)
    assert turned == {"near": "de", "seeds": [3], "sizes": ["0.35M"], "lr": {"target": 0.01}, "replay": 0, "arm_tokens": 2_000_000}
    assert type(settings["arm_tokens"]) is int  # a budget of 2e6 is the run of 2000000
    assert settings["sizes"] == {"0.35M": {"seeds": [3], "lr": {"base": 0.002}}}
    assert (settings["one_epoch_seeds"], settings["never_seeds"]) == ([3], [])  # an empty list switches a part off
    assert settings["lr"] == {"base": 0.002, "target": 0.01}
    assert SETTINGS["sizes"]["0.35M"]["seeds"] == [0]  # the profile itself is left alone


def test_what_plain_papermill_hands_on_as_text():
    assert turn(lr={"base": "1e-3"})[1] == {"lr": {"base": 0.001}}  # YAML 1.1 takes it for text
    assert turn(sweep="{rates: {}}")[0]["sweep"] == {"tokens": 1000, "rates": {}}
    assert turn(seeds="[0, 1]", lr="{target: 0.01}", arm_tokens="2000000")[1] == {
        "seeds": [0, 1],
        "lr": {"target": 0.01},
        "arm_tokens": 2_000_000,
    }


@pytest.mark.parametrize(
    "given, message",
    [
        ({"near": "Deutsch"}, 'parameter near = "Deutsch": give the code of a language, such as "de"'),
        ({"near": 3}, "parameter near = 3: give the code"),
        ({"near": "zh"}, "parameters near, far: all are 'zh'"),
        ({"seeds": 3}, "parameter seeds = 3: give a list of different whole numbers"),
        ({"seeds": [0, 0]}, "parameter seeds"),
        ({"seeds": [-1]}, "parameter seeds"),
        ({"seeds": [True]}, "parameter seeds"),
        ({"sizes": ["3M"]}, "has no settings for '3M'; it has 0.09M, 0.35M.*extends: laptop"),
        ({"sizes": []}, "parameter sizes"),
        ({"size": "35M"}, "model size '35M' is unknown: use one of 0.03M"),
        ({"arm_tokens": 0}, "parameter arm_tokens = 0: give a whole number of tokens"),
        ({"arm_tokens": 1.5}, "parameter arm_tokens"),
        ({"replay": 1.2}, "parameter replay = 1.2: give a part between 0 and 1"),
        ({"replay": "much"}, "parameter replay"),
        ({"shares": [2]}, "parameter shares"),
        ({"lr": 0.01}, "parameter lr = 0.01: give a mapping with keys among base, target"),
        ({"lr": {"arm": 0.01}}, "'arm' is not one of its keys base, target"),
        ({"lr": {"base": -1}}, "a learning rate above 0"),
        ({"kind": 3}, "parameter kind = 3: give text as the profile does"),
        ({"trace": {"seeds": "x"}}, 'parameter trace.seeds = "x": give a list'),
        ({"trace": {"share": 7}}, "parameter trace.share = 7: give a part"),
        ({"trace": {"share": 0}}, "parameter trace.share = 0"),
        ({"trace": {"size": "3M"}}, "model size '3M' is unknown"),
        ({"sweep": {"rates": {"0.35M": "abc"}}}, "parameter sweep.rates = .*a learning rate above 0"),
        ({"near": "en"}, "parameter near = 'en': English is the language of the base"),
        ({"colour": "red"}, "parameter colour: profile laptop, notebook 02 has no setting of that name"),
    ],
)
def test_a_wrong_value_names_the_parameter_and_the_remedy(given, message):
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        turn(**given)


def test_a_profile_of_ones_own_is_checked_by_the_same_names(tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text("extends: smoke\nnotebooks: {00_first_run: {replay: 7}, 02_cpt_loss_curves: {near: de}}")
    with pytest.raises(ConfigError, match="notebook 00_first_run: replay = 7: give a part between 0 and 1"):
        _ = open_study("00_first_run", str(own)).settings
    assert open_study("02_cpt_loss_curves", str(own)).corpus.name == "verses-en-de-zh-smoke"


def test_a_language_leads_to_a_corpus_that_has_it():
    assert open_study("02_cpt_loss_curves", "laptop", near=None).corpus.name == "verses-en-fr-zh"
    assert open_study("02_cpt_loss_curves", "laptop", near="de").corpus.name == "verses-en-de-zh"
    assert open_study("02_cpt_loss_curves", "smoke", far="ru").corpus.names == ("en", "fr", "ru")
    with pytest.raises(ConfigError, match="near = 'xx'.*ar, bn, de, en"):
        open_study("02_cpt_loss_curves", "laptop", near="xx")
