"""The dials of a notebook: parameters that take the place of the profile's values, checked by what their names mean.

A dial is a literal in the cell tagged ``parameters``; None is the profile's value. Names are the field's terms and carry their meaning
in every study: ``near``, ``middle``, ``far``, ``target`` and ``languages`` are languages, ``sizes`` and ``size`` models, ``seeds`` and
``seed`` seeds, ``tokens`` and ``…_tokens`` budgets, ``lr`` and ``rates`` learning rates, ``replay``, ``share`` and ``shares`` parts of a
mixture.
Papermill's ``-p`` hands on lists as text; they are read as YAML.
"""

import copy
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from cptlab.errors import ConfigError
from cptlab.languages import NAMES
from cptlab.runs.shapes import shape_named

EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
LANGUAGES = ("near", "far", "target", "language", "languages", "base_language")


def apply(dials: Mapping[str, Any], settings: Mapping[str, Any], where: str) -> tuple[dict, dict]:
    """The settings with the dials in place, and the dials that were turned: those that are not None, as checked values.

    Args:
        dials: dial -> value; None leaves the profile's.
        settings: the notebook's section of the profile.
        where: names the section in messages.

    A value that is the profile's own turns nothing, as when a cell that took the settings out is run again. A ``seeds`` list takes the
    place of every list of seeds in the settings; ``sizes`` picks rows of the profile's table of sizes, and a
    mapping (``lr``) changes the entries that it names.

    Raises:
        ConfigError: names the parameter, what is wrong and what to give instead.
    """
    result, turned = copy.deepcopy(dict(settings)), {}
    for name, value in dials.items():
        if value is None:
            continue
        if name not in settings and not (name == "seeds" and _has_seeds(settings)):
            raise ConfigError(f"parameter {name}: {where} has no setting of that name to take the place of; it has {', '.join(settings)}")
        value = _checked(name, _read(value, settings.get(name)), settings.get(name), where)
        own = settings.get(name)
        if value == own or (isinstance(own, Mapping) and value == list(own)):
            continue
        turned[name] = value
        if name == "seeds":
            result = _reseed(result, value)
        elif isinstance(result[name], Mapping) and name == "sizes":
            result[name] = {size: result[name][size] for size in value}
        elif isinstance(result[name], Mapping):
            result[name] = {**result[name], **value}
        else:
            result[name] = value
    given = languages_of(result)
    if turned and "base_language" not in result and "en" in given:
        names = ", ".join(name for name in LANGUAGES if name in result and "en" in _listed(result[name]))
        raise ConfigError(f"parameter {names} = 'en': English is the language of the base; choose another one")
    twice = sorted({language for language in given if given.count(language) > 1})
    if twice and turned:
        names = ", ".join(name for name in LANGUAGES if name in result and twice[0] in _listed(result[name]))
        raise ConfigError(f"parameters {names}: all are {twice[0]!r}; a study compares different languages")
    return result, turned


def check(settings: Mapping[str, Any], where: str) -> None:
    """Check the values of a section of a profile by their names, as those of dials; a budget may be 0 there, which switches a part off.

    Raises:
        ConfigError: names the section, the setting, and what to give.
    """
    for name, value in settings.items():
        if value is not None and value != 0 and not (name == "sizes" and isinstance(value, Mapping)):
            _check_kind(name, value, f"{where}: {name} = {json.dumps(value, ensure_ascii=False, default=str)}: give", "")


def languages_of(settings: Mapping[str, Any]) -> list[str]:
    """The languages that the settings name."""
    return [language for name in LANGUAGES if name in settings for language in _listed(settings[name])]


def _listed(value: Any) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]


def _read(value: Any, before: Any) -> Any:
    """A list or mapping that came as text, as plain Papermill hands it on; numbers that YAML 1.1 takes for text (1e-3); a whole number
    written 2e6."""
    if isinstance(value, str) and not isinstance(before, str):
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError:
            return value
    if isinstance(value, Mapping):
        inner = before if isinstance(before, Mapping) else {}
        return {name: _read(one, inner.get(name)) for name, one in value.items()}
    if isinstance(value, list | tuple):
        inner = before[0] if isinstance(before, list) and before else None
        return [_read(one, inner) if not isinstance(one, str) or not isinstance(inner, str | None) else one for one in value]
    if isinstance(value, str) and not isinstance(before, str) and EXPONENT.fullmatch(value):
        value = float(value)
    return int(value) if type(before) is int and type(value) is float and value.is_integer() else value


def _has_seeds(settings: Any) -> bool:
    if isinstance(settings, Mapping):
        return any(key == "seeds" or _has_seeds(value) for key, value in settings.items())
    return False


def _reseed(settings: Any, seeds: list[int]) -> Any:
    """Every list of seeds in the settings replaced, but for empty ones, which switch a part of a study off."""
    if not isinstance(settings, Mapping):
        return settings
    return {
        key: list(seeds) if (key == "seeds" or str(key).endswith("_seeds")) and value else _reseed(value, seeds)
        for key, value in settings.items()
    }


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value and abs(value) != float("inf")


def _rate(value: Any) -> bool:
    return all(map(_rate, value.values())) if isinstance(value, Mapping) else all(_number(x) and x > 0 for x in _listed(value))


#: pattern of the name -> (check, what to give)
KINDS: list[tuple[str, Callable[[Any], bool], str]] = [
    (r"seeds", lambda v: isinstance(v, list) and v and all(type(x) is int and x >= 0 for x in v) and len(set(v)) == len(v),
     "a list of different whole numbers of at least 0, such as [0, 1, 2]"),
    (r"seed", lambda v: type(v) is int and v >= 0, "a whole number of at least 0"),
    (r"(.*_)?tokens", lambda v: type(v) is int and v > 0, "a whole number of tokens of at least 1, such as 1000000"),
    (r"replay", lambda v: _number(v) and 0 <= v <= 1, "a part between 0 and 1, such as 0.2"),
    (r"share", lambda v: _number(v) and 0 < v <= 1, "a part above 0, up to 1, such as 0.01"),
    (r"(.*_)?(shares|ratios)", lambda v: isinstance(v, list) and v and all(_number(x) and 0 <= x <= 1 for x in v),
     "a list of parts between 0 and 1, such as [0, 0.05, 0.25]"),
    (r"lr|rates?|.*_lr", lambda v: _rate(v), "a learning rate above 0, such as 0.002, or one for each key"),
    (r"size", lambda v: isinstance(v, str) and bool(v), 'the name of a model, such as "0.35M"'),
    (r"sizes", lambda v: isinstance(v, list) and v and all(isinstance(x, str) for x in v) and len(set(v)) == len(v),
     'a list of names of models, such as ["0.09M", "0.35M"]'),
    (r"draws|starts", lambda v: type(v) is int and v > 0, "a whole number of at least 1"),
    (r"bootstrap", lambda v: type(v) is int and v >= 0, "a whole number of at least 0"),
    (r"languages", lambda v: isinstance(v, list) and v and all(map(_language, v)), 'a list of codes of languages, such as ["fr", "zh"]'),
    (r"near|middle|far|target|language|base_language", lambda v: _language(v), 'the code of a language, such as "de"'),
]  # fmt: skip


def _language(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[a-z]{2,3}", value) is not None


def _check_kind(name: str, value: Any, said: str, else_: str) -> None:
    for pattern, good, remedy in KINDS:
        if re.fullmatch(pattern, name):
            if not good(value):
                known = f"; known are {', '.join(NAMES)}" if "language" in remedy else ""
                raise ConfigError(f"{said} {remedy}{known}{else_}")
            return


def _checked(name: str, value: Any, before: Any, where: str, inside: str = "") -> Any:
    said = f"parameter {inside}{name} = {json.dumps(value, ensure_ascii=False, default=str)}"
    if not (inside and name in LANGUAGES):  # lr.target is a rate
        _check_kind(name, value, f"{said}: give", ", or None for the profile's value")
    if name == "size":
        shape_named(value, 2048, 256)  # an error that lists the shapes
    if name == "sizes" and isinstance(before, Mapping) and (unknown := [size for size in value if size not in before]):
        raise ConfigError(
            f"{said}: {where} has no settings for {unknown[0]!r}; it has {', '.join(before)}. Other sizes need settings, and rates "
            "in the table `tuned`, in a profile of your own (extends: laptop)"
        )
    if isinstance(before, Mapping) and name != "sizes":
        keys = ", ".join(map(str, before))
        if not isinstance(value, Mapping):
            raise ConfigError(f"{said}: give a mapping with keys among {keys}, or None for the profile's value")
        if unknown := [key for key in value if key not in before]:
            raise ConfigError(f"{said}: {unknown[0]!r} is not one of its keys {keys}")
        for key, inner in value.items():
            _checked(str(key), inner, before[key], where, f"{inside}{name}.")
    elif before is not None and name != "sizes":
        numbers = _number(before) and _number(value) and not (type(before) is int and type(value) is float)
        if type(value) is not type(before) and not numbers:
            kinds = {int: "a whole number", float: "a number", str: "text", bool: "True or False", list: "a list"}
            raise ConfigError(f"{said}: give {kinds.get(type(before), type(before).__name__)} as the profile does ({before!r}), or None")
    return value
