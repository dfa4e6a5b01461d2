"""How measurements are shown."""

import io
import re

import pytest
from markdown_it import MarkdownIt
from PIL import Image
from rich.console import Console

from bucketed_ranking.benchmarks.output import Table, csv_text, in_words, page
from bucketed_ranking.console import ProgressDisplay

TABLE = Table(["detector", "loss", "AP"], [["a", "x", "1.0"], ["a", "y|<z>", "22.0"]], "T", "Note.")


def test_off_a_terminal_lines_come_now_and_then(monkeypatch):
    clock = iter([0.0, 1.0, 6.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    output = io.StringIO()
    progress = ProgressDisplay(3, Console(file=output))
    for text in ("first [1, 2]", "second", "third"):
        progress.advance(text)
    assert output.getvalue() == "1/3 first [1, 2]\n3/3 third\n"


def test_markdown_names_a_detector_once_and_keeps_what_it_is_given():
    html = MarkdownIt().enable("table").render(TABLE.markdown())
    cells = re.findall(r"<td[^>]*>(.*?)</td>", html)
    assert cells == ["a", "x", "1.0", "", "y|&lt;z&gt;", "22.0"]


def test_a_page_holds_its_pictures(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "p.png")
    html = page(f"{TABLE.markdown()}\n\n![A picture](p.png)\n", tmp_path)
    assert html.index("<table>") < html.index("data:image/png;base64,")
    assert not re.search(r"(src|href)=[\"'](?!data:)", html)
    assert "y|&lt;z&gt;" in html


def test_a_table_is_printed_whole():
    output = io.StringIO()
    TABLE.print(Console(file=output, width=10))
    assert output.getvalue().splitlines()[-1].split() == ["a", "y|<z>", "22.0"]


def test_csv_leaves_empty_what_a_row_lacks():
    assert csv_text([{"a": 1}, {"b": None, "a": 2}]) == "a,b\n1,\n2,\n"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(42, "42 s"), (780, "13 min"), (3 * 3600, "3.0 h"), (3 * 86400, "3.0 days")],
)
def test_in_words(seconds, words):
    assert in_words(seconds) == words
