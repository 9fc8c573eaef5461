"""Rule filters on invented text: each rule has a document that only it removes."""

import json
import math

import pytest
from datasets import Dataset

from cptlab.corpora.clean.rules import RULES, Rules, measures
from cptlab.corpora.clean.step import Work
from cptlab.errors import CorpusError

PROSE = (
    "The ferry left the harbour before dawn, and nobody on deck spoke.\nA gull followed it past the last buoy; then the fog closed in.\n"
    "By noon the island lay ahead, low and green, with one white house.\nMara counted the windows and wondered which had been hers."
)
CHINESE = (
    "清晨的渡船离开港口，甲板上没有人说话。海鸥跟着它飞过最后一个浮标，然后雾就合拢了。\n"
    "中午时分，小岛出现在前方，低矮而翠绿，只有一座白色的房子。她数着窗户，心里想着哪一扇曾经属于自己。"
)
HINDI = "नदी के किनारे एक छोटा सा गाँव था जहाँ सब लोग मिलकर खेती करते थे। शाम को बच्चे पेड़ के नीचे कहानियाँ सुनते थे।"
CODE = "import os\n\n\ndef total(items):\n    return {key: sum(values) for key, values in items.items()}\n\n\n# end\n" * 3

BAD = {
    "few-characters": "Too short.",
    "many-characters": "".join(f"Line {i} of a very long list of sayings is here. " for i in range(25_000)),
    "broken-characters": PROSE.replace("o", "o\ufffd"),
    "long-run": PROSE + "\n" + "=" * 150,
    "long-word": PROSE + " " + "aGVsbG8gd29ybGQ" * 40,
    "lorem-ipsum": PROSE + " Lorem ipsum dolor sit amet.",
    "curly-brackets": PROSE.replace(" the ", " {the} "),
    "few-letters": PROSE.replace(" ", " +/ ~ @"),
    "digits": PROSE + "".join(f" {n * n}" for n in range(100, 140)),
    "short-words": " ".join("abcdefghijklmnopqrstuvwxyz" * 3),
    "long-words": "incomprehensibilities counterrevolutionaries internationalization disproportionately misunderstanding.",
    "symbols": PROSE.replace(" the", " # the").replace(" and", " # # and"),
    "bullet-lines": "".join(f"- point number {word} is made here,\n" for word in ("one", "two", "three", "four", "five")),
    "ellipsis-lines": "".join(
        f"This is the {word} of the lines that somebody has cut off in the...\n" for word in ("first", "next", "last")
    ),
    "menu-lines": "Home\nAbout us\nOur products\nContact\nSign in\nBasket\nHelp and advice\nTerms of use\nSite map",
    "duplicate-lines": PROSE + "\n" + PROSE,
    "duplicate-ngrams": " ".join(
        f"{word} now and save up to half of what you paid for it the last time you came here," for word in "abcdefghijklmnop"
    ),
}


def judged(texts, step=None, languages=None):
    count = len(texts)
    data = Dataset.from_dict(
        {
            "id": [str(i) for i in range(count)],
            "source": ["web"] * count,
            "origin": [""] * count,
            "language": languages or ["en"] * count,
            "split": ["train"] * count,
            "split_key": [str(i) for i in range(count)],
            "bytes": [len(text.encode()) for text in texts],
            "text": texts,
        }
    )
    return data, step or Rules()


def removed(tmp_path, texts, step=None, languages=None):
    data, step = judged(texts, step, languages)
    outcome = step.judge(data, Work(tmp_path / "step"))
    assert outcome["text"][:] == [None] * len(outcome)
    return {row: (rule, json.loads(proof)) for row, rule, proof in zip(outcome["row"], outcome["rule"], outcome["evidence"], strict=True)}


def test_each_rule_has_a_document_that_it_removes_and_sound_text_stays(tmp_path):
    assert set(BAD) == {name for name, rule in RULES.items() if rule.limit is not None}
    texts = [PROSE, CHINESE, HINDI, *BAD.values()]
    found = removed(tmp_path, texts)
    assert {row: rule for row, (rule, _) in found.items()} == {3 + place: name for place, name in enumerate(BAD)}
    for row, (name, proof) in found.items():
        rule = RULES[name]
        assert set(proof) == {"value", "limit", "side"} and (proof["limit"], proof["side"]) == (rule.limit, rule.side)
        assert proof["value"] == pytest.approx(measures(texts[row])[name], abs=1e-6)
        assert proof["value"] < rule.limit if rule.side == "below" else proof["value"] > rule.limit


def test_a_rule_can_be_switched_off_on_and_moved(tmp_path):
    menu = BAD["menu-lines"]
    assert removed(tmp_path / "off", [menu], Rules(limits={"menu-lines": None})) == {}
    on = removed(tmp_path / "on", [menu, PROSE], Rules(limits={"menu-lines": None, "unended-lines": 0.88}))
    assert {row: rule for row, (rule, _) in on.items()} == {0: "unended-lines"}
    moved = removed(tmp_path / "moved", [PROSE], Rules(limits={"few-characters": 1000}))
    assert moved[0] == ("few-characters", {"value": len(PROSE), "limit": 1000, "side": "below"})


def test_code_is_judged_only_by_rules_that_hold_for_any_text(tmp_path):
    broken = CODE.replace("total", "to\x00tal")
    found = removed(tmp_path, [CODE, CODE, broken], languages=["en", "python", "python"])
    assert set(found) == {0, 2} and RULES[found[0][0]].prose and found[2][0] == "broken-characters"
    assert set(removed(tmp_path / "no", [CODE], Rules(skip_languages=()), languages=["python"])) == {0}


def test_mojibake_is_found_and_accents_before_quotes_are_not():
    french = "« Il a été volé », dit-elle. “C’est l’été”, répondit le garçon, “et voilà”. «Così è»: ‘naïveté’, »groß«, Ñandú."
    russian = "Утром паром вышел из гавани, и никто на палубе не говорил."
    assert measures(french)["broken-characters"] == 0 == measures(russian)["broken-characters"]
    assert measures(french.encode().decode("latin-1"))["broken-characters"] > 0.1
    assert measures(russian.encode().decode("cp1252", "replace"))["broken-characters"] > 0.3
    assert measures(CHINESE.encode().decode("latin-1"))["broken-characters"] > 0.3


def test_measures_of_words_mean_nothing_without_spaces():
    chinese, english = measures(CHINESE), measures(PROSE)
    assert list(chinese) == list(RULES)
    words = PROSE.split()
    assert math.isnan(chinese["short-words"]) and english["short-words"] == pytest.approx(sum(map(len, words)) / len(words))
    assert chinese["duplicate-ngrams"] == 0 and measures(CHINESE + CHINESE)["duplicate-ngrams"] == pytest.approx(0.5, abs=0.05)
    # Vowel signs of Hindi are no letters to Python's isalnum; here they count as such.
    assert measures(HINDI)["few-letters"] > 0.97
    assert all(math.isnan(value) or value == 0 for name, value in measures("").items() if RULES[name].side == "above")


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(CorpusError, match="clean.rules: limits names unknown rules .'shouting'.: use few-characters"):
        Rules(limits={"shouting": 1})
    with pytest.raises(CorpusError, match="limits.digits is 'many'"):
        Rules(limits={"digits": "many"})
    with pytest.raises(CorpusError, match="skip_languages is 'python'"):
        Rules(skip_languages="python")
    assert json.dumps(Rules(limits={"digits": None}).canonical()).count("null") == 1
