"""Profiles: the settings of every notebook for one kind of machine, a YAML file each. A user's own may say only what differs.

``extends: laptop`` (a profile by name, or a YAML file by its path from the one that says so) begins with that profile: mappings merge
key by key at any depth, any other value takes the place of the one before, and ``null`` takes a key away.
"""

from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from cptlab import paths
from cptlab.errors import ConfigError, require

NEEDED = ("execution", "frame", "notebooks")
PROFILE_KEYS = {"description", "store", "tuned", *NEEDED}
TUNED_KEYS = {"lr", "warmup_tokens", "batch_tokens"}
FRAME_KEYS = {"corpus", "context", "batch_tokens", "precision", "schedule"}
SCHEDULE_KEYS = {"kind", "min_lr_ratio", "warmup_tokens", "warmup_start_ratio", "decay_fraction", "horizon_tokens"}
ARMS, ROLES = ("base", "scratch", "continual"), ("near", "far")  # that the table `tuned` may tell apart, in this order


def profile_names() -> list[str]:
    """The profiles that come with the package."""
    return sorted(path.name.removesuffix(".yaml") for path in resources.files(__name__).iterdir() if path.name.endswith(".yaml"))


def load_profile(name: str) -> dict:
    """A profile by name, or a user's own YAML file by path, with what it extends merged in.

    Raises:
        ConfigError: unknown name (lists the valid ones), not YAML, an unknown section, frame key or notebook, a key taken away that is
            not there, or files that extend each other in a circle; the message names the file and the key.
    """
    profile = _resolved(name, Path(), ())
    missing = sorted(FRAME_KEYS - set(profile["frame"]))
    require(not missing, f"profile {name}: frame has {sorted(profile['frame'])}, expected {sorted(FRAME_KEYS)}: add {', '.join(missing)}")
    return profile


def _resolved(name: str, folder: Path, above: tuple[str, ...]) -> dict:
    """The profile ``name``, a path of which begins at ``folder``; ``above`` are those that extend it, the one asked for first."""
    label, place, key, text = _read(name, folder, f"profile {above[-1]}: extends: " if above else "")
    require(key not in above, f"profile {key} extends itself, in a circle: {' -> '.join((*above, key))}: take one extends out")
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"profile {label} is not valid YAML: {error}") from None
    extends = content.pop("extends", None) if isinstance(content, dict) else None
    if extends is None:
        _check(content, label, NEEDED)
        return content
    require(isinstance(extends, str), f"profile {label}: extends is {extends!r}: give the name of one profile, or the path of a YAML file")
    _check(content, label, ())
    base = _resolved(extends, place, (*above, key))
    _check_notebooks(content, base, label, extends, place)
    return _merged(base, content, label, extends)


def _read(name: str, folder: Path, prefix: str) -> tuple[str, Path, str, str]:
    """Of a profile: what messages call it, its folder, what tells it from others (a path in full), its text."""
    own = Path(name)
    if own.suffix not in (".yaml", ".yml"):
        known = ", ".join(profile_names())
        require(name in profile_names(), f"{prefix}profile {name!r} is unknown: use one of {known}, or the path of a YAML file")
        inside = resources.files(__name__)
        return name, Path(str(inside)), name, inside.joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    path = folder / own.expanduser()
    hint = f": {own.stem} by name comes with the package" if own.stem in profile_names() else ""
    require(path.is_file(), f"{prefix}profile file {path} does not exist{hint}")
    try:
        return str(path), path.parent, str(path.resolve()), path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{prefix}profile file {path} cannot be read ({error}): check its permissions, and save it as UTF-8") from None


def _check(content: Any, name: str, needed: tuple[str, ...]) -> None:
    """The sections of one file and the keys of its frames, before anything is merged: so the message names the file that is wrong."""
    if not isinstance(content, dict) or set(content) - PROFILE_KEYS or not set(needed) <= set(content):
        found = sorted(map(str, content)) if isinstance(content, dict) else None
        unknown = sorted(map(str, set(content) - PROFILE_KEYS)) if found else []
        lacking = [] if not found else [key for key in needed if key not in content]
        what = "".join([f"; unknown: {', '.join(unknown)}" if unknown else "", f"; missing: {', '.join(lacking)}" if lacking else ""])
        hint = " (or begin with a profile: extends: laptop)" if lacking else ""
        raise ConfigError(f"profile {name} has the sections {found}: expected {sorted(PROFILE_KEYS)}{what}{hint}")
    for section in NEEDED:
        _require_mapping(content.get(section, {}), f"profile {name}: {section}")
    _check_frame(content.get("frame", {}), f"profile {name}: frame")
    _require_mapping(content.get("tuned", {}), f"profile {name}: tuned")
    for size, row in content.get("tuned", {}).items():
        if row is not None:
            _require_mapping(row, f"profile {name}: tuned.{size}")
            _check_keys(row, TUNED_KEYS, f"profile {name}: tuned.{size}")
            for key, value in row.items():
                _check_tuned(value, key, (ARMS, ROLES), f"profile {name}: tuned.{size}.{key}")
    for notebook, settings in content.get("notebooks", {}).items():
        where = f"profile {name}: notebooks.{notebook}"
        if settings is None:
            continue  # takes the notebook away
        _require_mapping(settings, where)
        if isinstance(settings.get("frame"), dict):
            _check_frame(settings["frame"], f"{where}.frame")


def _require_mapping(value: Any, where: str) -> None:
    require(isinstance(value, dict), f"{where} is {value!r}: give a mapping, key: value")


def _check_frame(frame: dict, where: str) -> None:
    _check_keys(frame, FRAME_KEYS, where)
    if frame.get("schedule") is not None:
        _require_mapping(frame["schedule"], f"{where}.schedule")
        _check_keys(frame["schedule"], SCHEDULE_KEYS, f"{where}.schedule")


def _check_tuned(value: Any, key: str, levels: tuple[tuple[str, ...], ...], where: str) -> None:
    """A positive number (whole, of tokens), or a mapping that tells arms, then roles apart; null takes away what was extended."""
    if isinstance(value, dict) and levels:
        _check_keys(value, set(levels[0]), where)
        for name, inner in value.items():
            _check_tuned(inner, key, levels[1:], f"{where}.{name}")
    elif value is not None:
        whole, kinds = key != "lr", (int,) if key != "lr" else (int, float)
        good = type(value) in kinds and (value > 0 or (key == "warmup_tokens" and value == 0))
        words = f"a {'whole ' if whole else ''}number above 0" + (" (or 0: no warm-up)" if key == "warmup_tokens" else "")
        require(good, f"{where} is {value!r}: give {words}" + (f", or one for each of {', '.join(levels[0])}" if levels else ""))


def _check_keys(found: dict, keys: set[str], where: str) -> None:
    unknown = sorted(map(str, set(found) - keys))
    require(not unknown, f"{where} has {sorted(map(str, found))}, expected {sorted(keys)}: take out {', '.join(unknown)}")


def _check_notebooks(content: dict, base: dict, name: str, extends: str, folder: Path) -> None:
    """A section that the profile extended lacks is a slip of the pen, unless there is such a notebook: a study of one's own."""
    for notebook in content.get("notebooks", {}):
        places = (paths.notebooks_dir(), folder, Path())
        require(
            notebook in base["notebooks"] or any((place / f"{notebook}.ipynb").is_file() for place in places),
            f"profile {name}: notebooks.{notebook} is no notebook of {extends}, which has {', '.join(map(str, base['notebooks']))}; "
            f"for a study of your own put {notebook}.ipynb in {places[0]}, or beside the profile",
        )


def _merged(base: dict, changes: dict, name: str, extends: str, above: tuple = ()) -> dict:
    """``base``, which is that of ``extends``, with the ``changes`` of the profile ``name`` to it, at the keys ``above``."""
    merged = dict(base)
    for key, value in changes.items():
        place = (*above, str(key))
        if value is None:
            has = ", ".join(map(str, base)) or "nothing"
            remove = f"profile {name}: {'.'.join(place)} is null, which takes a key away"
            require(key in base, f"{remove}, but {extends} has no such key there: it has {has}")
            del merged[key]
        elif isinstance(value, dict):
            before = base.get(key)
            merged[key] = _merged(before if isinstance(before, dict) else {}, value, name, extends, place)
        else:
            merged[key] = value
    return merged
