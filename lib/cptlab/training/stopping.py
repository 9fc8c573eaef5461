"""A worker that is asked to stop finishes its step, saves the state to resume from, and leaves. Imports no torch."""

import contextlib
import os
import signal
from collections.abc import Iterator

SECONDS = 15.0  # that a worker has for it before it is killed
EXIT_CODE = 143

_now = {"training": False, "asked": False}


class Stopped(BaseException):
    """The run stopped as asked, with its state saved. No failure: it passes every ``except Exception``."""


def listen() -> None:
    """From now on this process takes SIGTERM for such a wish; where it trains nothing, it ends at once."""
    signal.signal(signal.SIGTERM, _on_signal)


def _on_signal(*_) -> None:
    if not _now["training"]:
        os._exit(EXIT_CODE)
    _now["asked"] = True


def asked() -> bool:
    """Whether the run in training is to stop after its step."""
    return _now["asked"]


@contextlib.contextmanager
def after_a_step() -> Iterator[None]:
    """Block in which a run heeds :func:`asked`."""
    _now["training"] = True
    try:
        yield
    finally:
        _now["training"] = False


def leave() -> None:
    """End this process if it was asked to stop; call it where nothing is held any more."""
    if asked():
        os._exit(EXIT_CODE)
