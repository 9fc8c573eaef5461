"""Malformed records and unreadable files that are left out: noted, counted, and too many of them refused."""

import dataclasses
from collections import Counter
from dataclasses import dataclass

from cptlab.errors import CorpusError

EARLY_RECORDS = 1000  # from here on a file of another kind is refused before its end
EXAMPLES = 3


@dataclass(frozen=True)
class Note:
    """A record that was left out.

    Args:
        file: path of the file, or name of the data set.
        number: line of a text or jsonl file (of a text document the line that is bad, or its first), row of a parquet file or
            data set; from 1. 0: the file as a whole.
        reason: of a record ``not-utf8``, ``not-json``, ``not-object``, ``no-text``, ``no-split-field``, ``surrogate``, ``nul`` or
            ``too-long``; of a file ``empty-file`` or that of an :class:`UnreadableFile`.
        detail: what was found; of the record itself it holds at most 40 characters.
    """

    file: str
    number: int
    reason: str
    detail: str


class UnreadableFile(CorpusError):
    """A file that is bad as a whole, by its content alone: the same file is set aside everywhere, so one fingerprint means one text.

    Args:
        reason: ``unreadable`` (no permission, a link to nothing), ``misnamed``, ``damaged`` (cut short, too), ``binary``, ``bomb``,
            ``no-column``, ``malformed`` (too many of its records) or ``empty-file``.
    """

    def __init__(self, message: str, reason: str = "unreadable"):
        super().__init__(message)
        self.reason = reason


class Quarantine:
    """What reading left out. It counts all that it is given: take a new one for each reading.

    Args:
        limit: largest share of the records of one file (or data set) that may be malformed, from 0 to 1. It is checked at the end of a
            file (or where ``max_documents`` leaves it), and after 1000 records all along. 0: the first one is an error, and only whole
            files are set aside.
        keep: how many notes are kept, the first ones; all are counted.

    Attributes:
        records: records seen, good and bad: jsonl lines that are not blank, rows, text documents.
        reasons: reason -> number of records left out.
        notes: the first of them.
        files: the files that were set aside as a whole; their records count nowhere.
    """

    def __init__(self, limit: float = 0.05, keep: int = 10_000):
        self.limit, self.keep = limit, keep
        self.records = 0
        self.reasons: Counter[str] = Counter()
        self.notes: list[Note] = []
        self.files: list[Note] = []
        self.begin("")

    @property
    def bad(self) -> int:
        """Records left out."""
        return self.reasons.total()

    def begin(self, file: str) -> None:
        """A file begins; the limit holds for each by itself."""
        self._file, self._records = file, 0
        self._reasons: Counter[str] = Counter()
        self._first: list[Note] = []

    def add(self, note: Note | None) -> None:
        """Count a record; ``note`` says why it is left out, None that it is good.

        Raises:
            CorpusError: too many of many are bad.
        """
        self.records += 1
        self._records += 1
        if note is None:
            return
        self.reasons[note.reason] += 1
        self._reasons[note.reason] += 1
        if len(self.notes) < self.keep:
            self.notes.append(note)
        if len(self._first) < EXAMPLES:
            self._first.append(note)
        if self._records >= EARLY_RECORDS:
            self.check()

    def set_aside(self, file: str, reason: str, detail: str) -> None:
        """A file is left out as a whole."""
        self.files.append(Note(file, 0, reason, detail))

    def check(self) -> None:
        """UnreadableFile when too large a share of the present file is bad."""
        bad = self._reasons.total()
        if bad > self.limit * self._records:
            counts = ", ".join(f"{reason} {count}" for reason, count in self._reasons.most_common())
            first = "; ".join(f"number {note.number}: {note.detail}" for note in self._first)
            raise UnreadableFile(
                f"{self._file}: {bad} of {self._records} records are malformed ({counts}), over the limit of {self.limit:.2%}: the file is "
                f"probably of another kind. The first are {first}. Check what the file is and the fields' names, or raise the limit "
                "(quarantine in the recipe's section clean; --quarantine)",
                "malformed",
            )

    def summary(self) -> dict:
        """All of it as plain JSON: records, bad, reasons, notes, files."""
        notes, files = ([dataclasses.asdict(note) for note in some] for some in (self.notes, self.files))
        counts = {"records": self.records, "bad": self.bad, "reasons": dict(self.reasons.most_common())}
        return counts | {"notes": notes, "files": files}
