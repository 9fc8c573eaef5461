"""What models and data sets are, not what they are called: the commit behind a branch or tag of the Hugging Face Hub, the content of a
folder. Imports no torch."""

import hashlib
import re
from pathlib import Path

from cptlab.errors import ConfigError
from cptlab.files import sha256_file

COMMIT = re.compile(r"[0-9a-f]{40}")
# What ``from_pretrained`` reads of a folder: the configuration, the weights, and the indices of weights that lie in several files.
CONFIGURATION, WEIGHTS = ("config.json", "adapter_config.json"), ("*.safetensors", "*.bin", "*.index.json")


def hub_commit(name: str, revision: str = "main", kind: str = "model") -> str:
    """Commit (40 hex digits) that a branch or tag names on the Hugging Face Hub now; without network, when it was last fetched from here.

    Args:
        name: of a model, or with ``kind="dataset"`` of a data set.
        revision: branch or tag; a commit is given back as it is.

    Raises:
        ConfigError: there is no such name or revision, or the Hub is out of reach and the local cache does not know it.
    """
    if COMMIT.fullmatch(revision):
        return revision
    if Path(name).is_dir():
        raise ConfigError(f"{name} is a folder and has no commits: a model in a folder is named by folder_revision({name!r})")
    from huggingface_hub import HfApi

    try:
        return str(HfApi().resolve_revision(name, revision=revision, repo_type=kind).resolved)
    except Exception as error:  # errors of several libraries; the first line of each says what happened
        raise ConfigError(
            f"the commit of {kind} {name!r} at revision {revision!r} cannot be found ({type(error).__name__}: {brief(error)}): check "
            "name, revision, access and network, or give the 40 hex digits that the site shows under 'Files and versions', 'History'"
        ) from error


def folder_revision(path: str | Path) -> str:
    """``sha256:`` and the digest of a model's folder: names and content of its configuration and weights, whatever the folder is called.

    Raises:
        ConfigError: there is no folder, or it lacks a configuration or weights.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder: give one that save_pretrained wrote, or the name of a model and hub_commit(name)")
    files = {file.name: file for pattern in (*CONFIGURATION, *WEIGHTS) for file in folder.glob(pattern) if file.is_file()}
    if "config.json" not in files or not any(name.endswith((".safetensors", ".bin")) for name in files):
        raise ConfigError(f"{folder} lacks config.json or weights (*.safetensors, *.bin): save the model there with save_pretrained")
    lines = "".join(f"{name} {sha256_file(files[name])}\n" for name in sorted(files))
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def brief(error: Exception) -> str:
    """The first line of an error."""
    return (str(error).strip().splitlines() or [""])[0][:300]
