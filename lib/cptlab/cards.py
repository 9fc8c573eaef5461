"""Claim cards: how a notebook shows a verdict."""

import html
import re

from cptlab.claims import CONTRADICTED, INCONCLUSIVE, REPRODUCED, Verdict, wording

COLORS = {REPRODUCED: "#009E73", CONTRADICTED: "#D55E00", INCONCLUSIVE: "#8A8A8A"}
HEADS = ("quantity", "ours [95 % interval]", "from", "rule", "verdict")
_ARXIV = re.compile(r"arXiv[: ](\d{4}\.\d{4,5})")


def linked(text: str) -> str:
    """Text as HTML in which the number of a work on arXiv is a link to it."""
    return _ARXIV.sub(r'<a href="https://arxiv.org/abs/\1">arXiv \1</a>', html.escape(text))


class Card:
    """A claim card, shown by Jupyter as HTML, elsewhere as Markdown: statement, rule, numbers with intervals, what they count, runs,
    verdict, command, caveat, note."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict

    def _rows(self) -> list[tuple[str, ...]]:
        """Rows of :data:`HEADS`."""
        verdict, audit = self.verdict, self.verdict.claim.audit
        yes, no = wording(REPRODUCED, audit), "not borne out" if audit else CONTRADICTED
        return [
            (
                f"{test.meaning} ({test.quantity})",
                verdict.estimates[test.quantity].number,
                verdict.estimates[test.quantity].count,
                f"{yes} if {test.reproduced.text}; {no} if {test.contradicted.text}",
                wording(verdict.outcomes[test.quantity], audit),
            )
            for test in verdict.claim.tests
        ]

    def _heading(self) -> tuple[str, str]:
        """Verdict in words, and where the claim comes from."""
        claim = self.verdict.claim
        return wording(self.verdict.outcome, claim.audit), ", ".join(filter(None, (claim.source, claim.published)))

    def _footer(self) -> str:
        records = sum("/" in name for name in self.verdict.runs)
        counts = {"run": len(self.verdict.runs) - records, "record": records}
        parts = [f"{count} {name}{'s' if count > 1 else ''}" for name, count in counts.items() if count]
        parts += [f"profile {self.verdict.profile}", *(f"{name} = {value}" for name, value in self.verdict.dials.items())]
        return ", ".join(parts)

    def _repr_markdown_(self) -> str:
        claim, (words, source) = self.verdict.claim, self._heading()
        cells = [tuple(text.replace("|", "\\|").replace("\n", " ") for text in row) for row in self._rows()]
        lines = [
            f"**{claim.id}: {words}** ({source})",
            "",
            "\n".join(f"> {line}" for line in claim.statement.splitlines()),
            "",
            f"| {' | '.join(HEADS)} |",
            f"|{'---|' * len(HEADS)}",
            *(f"| {' | '.join(row)} |" for row in cells),
            "",
            f"{self._footer()}. Repeat: `{self.verdict.command}`",
        ]
        more = [f"**Caveat:** {claim.caveat}"] * bool(claim.caveat) + [claim.note] * bool(claim.note)
        return "\n".join([*lines, *(line for text in more for line in ("", text))])

    def _repr_html_(self) -> str:
        claim, verdict, (words, source) = self.verdict.claim, self.verdict, self._heading()
        look = "text-align:left;vertical-align:top;padding:2px 10px 2px 0"
        whole = (1, 2, 4)  # columns whose text must not break
        styles = [f"{look};white-space:nowrap" if place in whole else look for place in range(len(HEADS))]
        head = "".join(f'<th style="{look}">{name}</th>' for name in HEADS)
        rows = "".join(
            "<tr>" + "".join(f'<td style="{style}">{html.escape(text)}</td>' for style, text in zip(styles, row, strict=True)) + "</tr>"
            for row in self._rows()
        )
        note = f"<div><b>Caveat:</b> {html.escape(claim.caveat)}</div>" if claim.caveat else ""
        note += f"<div>{linked(claim.note)}</div>" if claim.note else ""
        return (
            f'<div style="border-left:6px solid {COLORS[verdict.outcome]};padding:4px 12px;margin:8px 0;max-width:1000px">'
            f"<div><b>{html.escape(claim.id)}: {html.escape(words)}</b> ({linked(source)})</div>"
            f"<div><i>{linked(claim.statement)}</i></div>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{note}"
            f"<div>{html.escape(self._footer())}. Repeat: <code>{html.escape(verdict.command)}</code></div></div>"
        )

    def __repr__(self) -> str:
        return self._repr_markdown_()
