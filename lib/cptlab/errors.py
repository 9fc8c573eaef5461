"""The errors that cptlab raises on purpose: each message says what was wrong, where, and what to do."""


class Short:
    """Mixin: an error that a notebook shows as the line of the user's cell and the message."""

    def _render_traceback_(self) -> list[str]:  # IPython asks for it
        from cptlab.kernel import short_traceback

        return short_traceback(self)


class CptlabError(Short, Exception):
    """Base of every error that a user can mend; the command line prints its message without a traceback."""


class Interrupted(Short, KeyboardInterrupt):
    """A sweep was interrupted; the message says where its runs stopped and where they go on from."""


class ConfigError(CptlabError):
    """A profile, a notebook parameter or a field of a run is not valid."""


class CorpusError(CptlabError):
    """A source could not be fetched, verified, read or tokenised."""


class StoreError(CptlabError):
    """A record in the run store is missing, torn or contradicts itself."""


class TrainingError(CptlabError):
    """Training one run failed: a loss that is not finite, a shape that does not fit, memory that ran out."""


class DataError(CptlabError):
    """A table of measurements cannot be read, has a bad value, or cannot determine what is asked of it."""


def require(condition: bool, message: str) -> None:
    """Raise :class:`ConfigError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise ConfigError(message)


def require_whole(name: str, value: int | None, least: int = 1) -> None:
    """Raise :class:`ConfigError` unless the setting ``name`` is None or a whole number of at least ``least``."""
    require(value is None or (type(value) is int and value >= least), f"{name} is {value!r}: give a whole number of at least {least}")
