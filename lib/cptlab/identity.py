"""The canonical form of a specification: plain JSON in which equal meanings are equal and different ones differ."""

import dataclasses
import hashlib
import json
from dataclasses import MISSING, fields
from types import MappingProxyType
from typing import Any

from cptlab.errors import ConfigError


def canonical(value: Any) -> Any:
    """Plain JSON value of a spec field.

    Raises:
        ConfigError: for anything whose text form is not its meaning (functions, arrays, objects, NaN), so that no
            two different specs can share an identity and no equal ones can differ.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise ConfigError(f"a run spec holds {value}: give a finite number")
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if isinstance(value, dict | MappingProxyType):
        if not all(isinstance(key, str) for key in value):
            raise ConfigError(f"a run spec holds a mapping with a key that is not text: {sorted(map(repr, value))}")
        return {key: canonical(value[key]) for key in sorted(value)}
    if dataclasses.is_dataclass(value) and hasattr(value, "canonical"):
        return value.canonical()
    raise ConfigError(f"a run spec holds a {type(value).__name__} ({value!r:.80}): use numbers, text, lists and dictionaries only")


# For a field that is added after the recipe version was last raised (none is so far; raising it takes all the marks away):
# ``field(default=..., metadata=ADDED)`` leaves it out of the canonical form while it has its default, so that a run described before the
# field existed keeps its identity. The default must then mean "as it was before". A ``default_factory`` will not do: a dataclass keeps no
# default to compare with then, and every identity would change.
ADDED = {"left_out_at_default": True}


def canonical_fields(spec: Any, leave_out: tuple[str, ...] = ()) -> dict:
    """Canonical fields of a dataclass.

    Raises:
        TypeError: a field marked ADDED has a ``default_factory``.
    """
    for f in fields(spec):
        if f.metadata.get("left_out_at_default") and f.default is MISSING:
            raise TypeError(f"{type(spec).__name__}.{f.name} is marked ADDED without a plain default: give default=None or (), no factory")
    return {
        f.name: canonical(getattr(spec, f.name))
        for f in fields(spec)
        if f.name not in leave_out and not (f.metadata.get("left_out_at_default") and getattr(spec, f.name) == f.default)
    }


def digest(content: Any) -> str:
    """Hex sha256 of canonical content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


class PlainSpec:
    """Canonical form of a frozen dataclass of plain literals."""

    def canonical(self) -> dict:
        return canonical_fields(self)
