"""How far a measurement is: a live bar on a terminal, plain lines elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class StepProgress:
    """Shows which of `total` steps is under way, inside a `with` statement."""

    plain_interval_s = 5.0

    def __init__(self, total: int, console: Console) -> None:
        self._console, self._total, self._begun = console, total, 0
        self._printed = float("-inf")
        self._bar = Progress(
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> "StepProgress":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def advance(self, text: str) -> None:
        """The step before, if any, is done; the next is called `text`."""
        self._bar.update(self._task, completed=self._begun, description=text)
        self._begun += 1
        now = time.monotonic()
        if self._bar.disable and now - self._printed >= self.plain_interval_s:
            self._printed = now
            line = f"{self._begun}/{self._total} {text}"
            self._console.print(line, soft_wrap=True, highlight=False)
