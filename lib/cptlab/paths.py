"""Where things live. Every place can be moved by an environment variable; none of them is part of a run's identity."""

import os
from pathlib import Path


def clone() -> Path | None:
    """Top of the repository: ``CPTLAB_ROOT``, else the first folder upwards from here or from this file that holds ``claims.yaml`` and
    ``notebooks/``; None where there is none, as for a notebook that was copied out of its clone."""
    if "CPTLAB_ROOT" in os.environ:
        return Path(os.environ["CPTLAB_ROOT"]).resolve()
    for start in (Path.cwd(), Path(__file__).resolve().parent):
        for folder in (start, *start.parents):
            if (folder / "claims.yaml").is_file() and (folder / "notebooks").is_dir():
                return folder
    return None


def sought() -> str:
    """Where a clone was looked for in vain, in words; empty where there is one."""
    found = clone()
    if found is not None and (found / "claims.yaml").is_file():
        return ""
    return f"in CPTLAB_ROOT, {found}" if found else f"upward of {Path.cwd()}"


def root() -> Path:
    """:func:`clone`, or this folder where there is none."""
    return clone() or Path.cwd()


def cache_dir() -> Path:
    """Downloads, built corpora and compiled kernels (``CPTLAB_CACHE``, default ``<root>/.cache``); safe to delete."""
    return Path(os.environ.get("CPTLAB_CACHE") or root() / ".cache")


def runs_dir() -> Path:
    """The committed layer of the run store, which is only read: ``<root>/runs``."""
    return root() / "runs"


def outputs_dir() -> Path:
    """Where what is made here goes, figures apart: ``CPTLAB_LOCAL``, default ``<root>/runs``. A class that shares a clone sets it."""
    return Path(os.environ.get("CPTLAB_LOCAL") or root() / "runs")


def local_runs_dir() -> Path:
    """The local layer of the run store, which is written to: ``<outputs>/local``."""
    return outputs_dir() / "local"


def figures_dir() -> Path:
    """Where figures are written: ``CPTLAB_FIGURES``, default ``figures/`` below ``CPTLAB_LOCAL`` where that is set, else of the clone."""
    return Path(os.environ.get("CPTLAB_FIGURES") or Path(os.environ.get("CPTLAB_LOCAL") or root()) / "figures")


def notebooks_dir() -> Path:
    """The committed notebooks."""
    return root() / "notebooks"
