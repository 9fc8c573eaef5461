"""A new study that runs at once: its notebook, its section in every profile, a claim with a rule, and a test.

The files of ``template/`` are those of a study ``00_new_study`` with the claim L0.1; names and numbers are put in their place.
"""

import re
import shutil
from importlib import resources
from pathlib import Path
from string import Template

import yaml

from cptlab import paths
from cptlab.errors import ConfigError, require

NAME = re.compile(r"(\d{2,})((?:_[a-z0-9]+)+)", re.ASCII)
MODEL = "00_first_run"  # whose settings a new section starts with
SEEDS, SMOKE_SEEDS = [0, 1, 2], [0, 1]


def new_study(name: str, root: Path | None = None) -> list[Path]:
    """Write the files of study ``name`` into the clone at ``root`` (default: this one) and return their paths.

    Everything is checked, and every file written beside its place, before the first one is put there.

    Raises:
        ConfigError: the name is not of the form ``13_my_question``; its number, or a file, section or claim of it is taken; ``root`` is no
            clone; a profile or the ledger cannot be added to.
    """
    match = NAME.fullmatch(name)
    require(match is not None, f"{name!r} cannot name a study: give a number of two digits and words, such as 13_my_question")
    number, claim = match[1], f"L{int(match[1])}.1"
    root = Path(root or paths.root())
    books, profiles = root / "notebooks", sorted((root / "lib" / "cptlab" / "profiles").glob("*.yaml"))
    ledger, book, test = root / "claims.yaml", books / f"{name}.ipynb", root / "tests" / f"test_{name}.py"
    require(
        ledger.is_file() and books.is_dir() and test.parent.is_dir() and bool(profiles),
        f"{root} is not a clone of cptlab (claims.yaml, notebooks/, tests/, lib/cptlab/profiles/): run this in one, or set CPTLAB_ROOT",
    )
    numbers = {int(path.stem.split("_")[0]): path for path in books.glob("*.ipynb") if path.stem.split("_")[0].isdigit()}
    taken = numbers.get(int(number), test if test.exists() else None)
    require(taken is None, f"{taken} exists: choose another number, {max(numbers, default=0) + 1:02} is free")

    words = match[2].replace("_", " ").strip().capitalize()
    changes = {"00_new_study": name, "L0.1": claim, "00_gain": f"{number}_gain", "figures 00 ": f"figures {number} ", "A new study": words}

    def fill(file: str) -> str:
        text = resources.files("cptlab").joinpath("template", file).read_text(encoding="utf-8")
        for old, new in changes.items():
            text = text.replace(old, new)
        return text

    contents = {path: _with_section(path, name, fill("profile.yaml")) for path in profiles}
    contents |= {ledger: _with_claim(ledger, claim, fill("claim.yaml")), test: fill("test.py"), book: fill("notebook.ipynb")}
    contents = {path: text for path, text in contents.items() if text is not None}
    _write(contents)
    return list(contents)


def _load(path: Path) -> tuple[str, object]:
    text = path.read_bytes().decode()  # line ends as they are
    try:
        return text, yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error


def _with_section(path: Path, name: str, template: str) -> str | None:
    """A profile's text with a section for ``name`` at its end; None for a profile that has its sections from the one that it extends."""
    text, profile = _load(path)
    require(isinstance(profile, dict), f"{path} is not a profile: expected a mapping")
    sections = profile.get("notebooks") or {}
    if MODEL not in sections and "extends" in profile:
        return None
    require(MODEL in sections, f"{path} has no section for {MODEL}, which a new section is modelled on: add one")
    require(name not in sections, f"{path} has a section {name} already: remove it, or choose another name")
    model = sections[MODEL]
    values = {key: model[key] for key in ("size", "base_tokens", "target_tokens")} | {
        "seeds": SMOKE_SEEDS if path.stem == "smoke" else SEEDS
    }
    section = Template(template).substitute(values)
    longer = f"{text.rstrip()}\n{section}"
    fits = _parses_to(longer, profile | {"notebooks": sections | yaml.safe_load(section)})
    require(fits, f"{path}: no section can be added at its end; make notebooks its last part, indented by two spaces")
    return longer


def _with_claim(path: Path, claim: str, entry: str) -> str:
    """The ledger's text with a claim at its end."""
    text, claims = _load(path)
    claims = claims or []
    require(isinstance(claims, list), f"{path}: expected a list of claims, each starting with '- id: ...'")
    require(claim not in [known.get("id") for known in claims if isinstance(known, dict)], f"{path} has a claim {claim} already")
    longer = entry.lstrip() if not claims else f"{text.rstrip()}\n{entry}"
    fits = _parses_to(longer, claims + yaml.safe_load(entry))
    require(fits, f"{path}: no claim can be added at its end; begin each one with '- id: ...'")
    return longer


def _parses_to(text: str, value: object) -> bool:
    try:
        return yaml.safe_load(text) == value
    except yaml.YAMLError:
        return False


def _write(contents: dict[Path, str]) -> None:
    """Put all files in place, or none of them: what can fail (permission, a full disk) happens to files beside them."""
    staged = {path.with_name(f".{path.name}.new.tmp"): path for path in contents}
    try:
        for temporary, path in staged.items():
            temporary.write_bytes(contents[path].encode())
            if path.exists():
                shutil.copymode(path, temporary)
        for temporary, path in staged.items():
            temporary.replace(path)
    finally:
        for temporary in staged:
            temporary.unlink(missing_ok=True)
