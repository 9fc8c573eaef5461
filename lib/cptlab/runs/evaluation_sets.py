"""Names of evaluation sets: the text that a request asks for and that stands in the column ``set`` of the measurements.

::

    SOURCE[:COUNT][@OTHER | ~CHOICES]

    fr          64 windows of context + 1 tokens, spread evenly over the validation text of source ``fr``: loss and accuracy a token
    fr:256      as many windows as named; fr:all takes all that the validation text has
    en@fr       the same of ``en``, among the tokens that occur in the training text of ``fr`` only: the others are left out of the softmax,
                and a label that is one of them is not counted
    fr~4        choices: the last 16 tokens of each window against those of three others, each scored by its log-likelihood after what
                comes before; ``accuracy`` is the share where the true ones win, ``loss_nats`` their loss a token

``en:256@fr`` and ``fr:all~4`` combine a count with a kind. The canonical name leaves the default count out: ``fr:64`` is ``fr``.
Imports no torch.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cptlab.errors import ConfigError

WINDOWS = 64
FORM = re.compile(r"(?P<source>[^:@~]+)(:(?P<count>all|[1-9][0-9]*))?(@(?P<among>[^:@~]+)|~(?P<choices>[1-9][0-9]*))?")


@dataclass(frozen=True)
class EvaluationSet:
    """One evaluation set.

    Args:
        source: whose validation text.
        count: windows; None: all that there are.
        among: source whose training text's tokens alone take part in the softmax; None: all tokens.
        choices: ends that each window's true one competes among, itself included; 0: no choices, the loss of every token.
    """

    source: str
    count: int | None = WINDOWS
    among: str | None = None
    choices: int = 0

    @classmethod
    def parse(cls, name: str, sources: Sequence[str] | None = None) -> "EvaluationSet":
        """The set of a name; ``sources`` are those that it may use (None: any).

        Raises:
            ConfigError: not of the form above, or another source; lists the sources.
        """
        form = FORM.fullmatch(name)
        if form:
            count = None if form["count"] == "all" else int(form["count"] or WINDOWS)
            made = cls(form["source"], count, form["among"], int(form["choices"] or 0))
            named = {made.source, made.among or made.source}
            if made.choices != 1 and made.choices <= (count or made.choices) and (sources is None or named <= set(sources)):
                return made
        known = "" if sources is None else f" of the corpus ({', '.join(sources)})"
        raise ConfigError(
            f"evaluation set {name!r} is not valid: name a source{known}, if need be with a number of windows ('fr:128', 'fr:all'), then "
            "with the source whose tokens it is judged among ('en@fr') or a number of choices, from 2 to that of the windows ('fr~4')"
        )

    @property
    def name(self) -> str:
        """The canonical name."""
        count = "" if self.count == WINDOWS else f":{self.count or 'all'}"
        return self.source + count + (f"@{self.among}" if self.among else "") + (f"~{self.choices}" if self.choices else "")
