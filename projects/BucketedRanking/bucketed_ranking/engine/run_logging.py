"""Where a run's messages go: all to its log, those that concern the user to the terminal."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detectron2.utils import comm

_LOGGERS = ("detectron2", "fvcore", "bucketed_ranking", "py.warnings")


def _concerns_the_user(record: logging.LogRecord) -> bool:
    """Whether a warning belongs on the terminal and not in the log alone.

    Exceptions reach the user as one sentence. Detectron2 and Python warn of what is normal here,
    such as category ids that are not 1, 2, 3, ...; what is warned of in loading weights matters.
    """
    return record.exc_info is None and not record.name.startswith(("detectron2", "py.warnings"))


@contextmanager
def run_logging(output: Path) -> Iterator[None]:
    """Log to `output`/log.txt, and warnings to the terminal, while the context lasts."""
    rank = comm.get_rank()
    file = logging.FileHandler(output / ("log.txt" if rank == 0 else f"log.txt.rank{rank}"))
    file.setFormatter(
        logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", "%m/%d %H:%M:%S")
    )
    terminal = logging.StreamHandler()
    terminal.setLevel(logging.WARNING if comm.is_main_process() else logging.CRITICAL)
    terminal.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    terminal.addFilter(_concerns_the_user)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger.level, logger.propagate) for logger in loggers]
    logging.captureWarnings(True)
    for logger in loggers:
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.addHandler(file)
        logger.addHandler(terminal)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.setLevel(level)
            logger.propagate = propagate
            logger.removeHandler(file)
            logger.removeHandler(terminal)
        file.close()
