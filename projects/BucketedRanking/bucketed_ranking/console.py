"""What people read: lines and numbers, and the progress of what takes long."""

import math
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


def say(console: Console, text: str) -> None:
    """Print a text as it is: not folded, not coloured."""
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def number(value: float | None, decimals: int = 1, unit: str = "") -> str:
    """A number with so many decimals; a dash where it is not known or could not be computed."""
    return "-" if value is None or math.isnan(value) else f"{value:.{decimals}f}{unit}"


class ProgressDisplay:
    """Which of `total` steps is under way, in a `with` statement: a live bar on a terminal;
    elsewhere plain lines, `interval_s` apart at least, and one at the end."""

    def __init__(self, total: int | None, console: Console, interval_s: float = 5.0) -> None:
        self._console, self._total, self._begun, self._interval = console, total, 0, interval_s
        self._printed = float("-inf")
        text = TextColumn("{task.description}", markup=False)
        columns = BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn(), text
        live = console.is_terminal
        self.bar = Progress(*columns, console=console, transient=True, disable=not live)
        self._task = self.bar.add_task("", total=total)

    def __enter__(self) -> "ProgressDisplay":
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def advance(self, text: str) -> None:
        """The step before, if any, is done; the next is called `text`."""
        self._begun += 1
        self.show(self._begun - 1, f"{self._begun}/{self._total} {text}", text)

    def show(self, done: int, line: str, text: str, total: int | None = None) -> None:
        """So many steps are done; `text` stands beside the bar, `line` where there is none.

        Args:
            total: another one than before.
        """
        if total is not None:
            self._total = total
            self.bar.update(self._task, total=total)
        ends = self.bar.tasks[0].completed < done == self._total
        self.bar.update(self._task, completed=done, description=text)
        now = time.monotonic()
        if ends or (self.bar.disable and now - self._printed >= self._interval):
            self._printed = now
            say(self._console, line)
