"""How measurements are shown: tables of strings, a page of HTML, rows as CSV."""

import csv
import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markdown import markdown
from rich.console import Console
from tabulate import tabulate

from ..console import say
from ..html_page import data_uri, html_page

Columns = Mapping[str, Callable[[Any], str]]
"""What a table says of each of its rows, by title."""

_STYLE = """
td:not(:nth-child(10)) { white-space: nowrap; }  /* the tenth of a run is its error */
tr:has(td:first-child:not(:empty)) td { border-top: 1px solid #888; }
"""


@dataclass(frozen=True)
class Table:
    """A titled table of strings with a sentence or two on how to read it.

    The first `left` columns are aligned to the left; with `grouped`, what repeats in the first
    column is named once.
    """

    header: list[str]
    rows: list[list[str]]
    title: str = ""
    note: str = ""
    left: int = 2
    grouped: bool = True

    @classmethod
    def of(cls, rows: Sequence[Any], columns: Columns, *about: str, **how: Any) -> "Table":
        """A table of what the columns say of each row."""
        cells = [[of_row(row) for of_row in columns.values()] for row in rows]
        return cls(list(columns), cells, *about, **how)

    def markdown(self) -> str:
        """As in GitHub's Markdown, with title and note."""
        rows = [
            ["", *row[1:]] if self.grouped and row[0] == before else row
            for row, before in zip(self.rows, [None, *(row[0] for row in self.rows)], strict=False)
        ]
        header, *rows = [
            [html.escape(text, quote=False).replace("|", "\\|") for text in row]
            for row in (self.header, *rows)
        ]
        return "\n\n".join([f"## {self.title}", self.note, self._format(header, rows, "pipe")])

    def print(self, console: Console) -> None:
        """On a terminal, never folded or cut."""
        say(console, self._format(self.header, self.rows, "simple"))

    def _format(self, header: list[str], rows: list[list[str]], style: str) -> str:
        align = ["left"] * self.left + ["right"] * (len(header) - self.left)
        return tabulate(rows, header, style, colalign=align, disable_numparse=True)


def page(text: str, folder: Path) -> str:
    """Markdown as one HTML file, with the pictures of a folder inside."""

    def embed(match: re.Match) -> str:
        return f'src="{data_uri((folder / match[1]).read_bytes())}"'

    body = re.sub('src="([^"]+)"', embed, markdown(text, extensions=["tables"]))
    return html_page(text.splitlines()[0].lstrip("# "), body, _STYLE)


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as CSV, their keys as columns; what a row lacks is left empty."""
    stream = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def in_words(seconds: float) -> str:
    """A length of time as people say it: 40 s, 12 min, 3.5 h, 2.1 days."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"
