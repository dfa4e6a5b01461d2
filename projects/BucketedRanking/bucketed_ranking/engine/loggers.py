"""Weights & Biases and MLflow: each gets, through its own client, the rows of metrics.json."""

import importlib.util
import json
import logging
import os
import posixpath
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

from ..data.files import write_atomically
from ..errors import BucketRankError
from .run_folder import LOGGED, METRICS, read_config
from .setup import flatten

logger = logging.getLogger(__name__)

_ADDRESS = re.compile(r"""(\w+://)(?:[^\s/'"]*@)?([^\s?'"]*)(?:\?[^\s'"]*)?""")
"""Its two groups are an address without user, password and query, which may be secret."""

_MLFLOW_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    # Training waits for it, at most so long before it gives up.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
}
_MLFLOW_PARAMETERS = 100
"""How many MLflow takes at once."""


def public_config(cfg: CfgNode) -> dict[str, Any]:
    """The config as plain dictionaries, without what may be secret in addresses."""
    return yaml.safe_load(_ADDRESS.sub(r"\1\2", cfg.dump()))


class WandbLogger:
    """A run of Weights & Biases; its variables, such as WANDB_MODE and WANDB_PROJECT, count."""

    title = "Weights & Biases"
    hint = "WANDB_MODE=offline logs into the run's folder, for `wandb sync`"

    def __init__(self, cfg: CfgNode, run_id: str | None):
        import wandb

        if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False, verify=False):
            raise ValueError("it has no API key: log in first (`wandb login`)")
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "bucketrank"),
            name=Path(cfg.OUTPUT_DIR).name,
            dir=cfg.OUTPUT_DIR,
            id=run_id,
            resume="allow",
            config=public_config(cfg),
            # Neither the command line nor the repository's address, which may hold secrets.
            settings=wandb.Settings(
                x_disable_meta=True,
                disable_git=True,
                disable_code=True,
                console="off",
                quiet=True,
                # In seconds: what a kill loses of an offline run, and its resumed run does not.
                x_transaction_log_flush_interval=1.0,
                init_timeout=30,
                finish_timeout=60,
            ),
        )
        self.run_id = self.run.id

    def send(self, row: dict[str, float]) -> None:
        self.run.log(row, step=row["iteration"], commit=True)  # else it waits for the next

    def close(self, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)


class MlflowLogger:
    """A run of MLflow: in MLFLOW_TRACKING_URI, or in the file mlflow.db of the run's folder."""

    title = "MLflow"
    hint = "without MLFLOW_TRACKING_URI it logs into the run's folder"

    def __init__(self, cfg: CfgNode, run_id: str | None):
        for name, value in _MLFLOW_DEFAULTS.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient
        from mlflow.entities import Param

        output = Path(cfg.OUTPUT_DIR).resolve()
        own = os.environ.get("MLFLOW_TRACKING_URI")
        self.client = MlflowClient(own or f"sqlite:///{output / 'mlflow.db'}")
        if run_id is not None:
            self.run_id = run_id
            self.client.update_run(run_id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "bucketrank")
        found = self.client.get_experiment_by_name(name)
        artifacts = None if own else (output / "mlflow-artifacts").as_uri()
        experiment = (
            found.experiment_id if found else self.client.create_experiment(name, artifacts)
        )
        self.run_id = self.client.create_run(experiment, run_name=output.name).info.run_id
        values = flatten(CfgNode(public_config(cfg)))
        params = [Param(key, str(value)) for key, value in values.items()]
        for start in range(0, len(params), _MLFLOW_PARAMETERS):
            self.client.log_batch(self.run_id, params=params[start : start + _MLFLOW_PARAMETERS])

    def send(self, row: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now, step = int(1000 * time.time()), row["iteration"]
        # Names are paths of letters, digits and a few more; those of classes may be anything.
        names = {key: posixpath.normpath(re.sub(r"[^/\w.\- ]", "_", key)) for key in row}
        metrics = [Metric(names[key], float(value), now, step) for key, value in row.items()]
        self.client.log_batch(self.run_id, metrics=metrics)

    def close(self, finished: bool) -> None:
        self.client.set_terminated(self.run_id, "FINISHED" if finished else "KILLED")


LOGGERS = {"wandb": WandbLogger, "mlflow": MlflowLogger}


def require_loggers(cfg: CfgNode) -> None:
    """Raise BucketRankError unless LOGGERS are loggers whose packages are installed."""
    for name in cfg.LOGGERS:
        if name not in LOGGERS:
            raise BucketRankError(f"LOGGERS has {name!r}; it takes some of {', '.join(LOGGERS)}.")
        if importlib.util.find_spec(name) is None:
            raise BucketRankError(
                f"--log {name} needs a package that is not installed: pip install "
                f"'bucketrank[{name}]'."
            )


class SendRows(HookBase):
    """Sends each row of metrics.json, once, to loggers, after the hook that writes it.

    A logger that fails is warned of and gets no more; a resumed run sends it what it lacks.

    Args:
        opened: loggers by name.
        sent: the iteration of the last row that each of them has; absent: none.
    """

    def __init__(self, output: Path, opened: dict[str, Any], sent: dict[str, int]):
        self.output, self.opened, self.sent = output, dict(opened), dict(sent)
        self.runs = {name: each.run_id for name, each in opened.items()}
        self.read, self.finished = 0, False

    def after_step(self) -> None:
        rows = self._new_rows()
        for name, each in list(self.opened.items()) if rows else ():
            with self._warned(name):
                for row in rows:
                    if row["iteration"] > self.sent.get(name, -1):
                        each.send(row)
                        self.sent[name] = row["iteration"]
        if rows:
            self.remember()

    def after_train(self) -> None:
        # The last row of a run that was stopped is none that it would have had.
        if self.trainer.iter >= self.trainer.max_iter:
            self.finished = True
            self.after_step()

    def _new_rows(self) -> list[dict[str, float]]:
        path = self.output / METRICS
        if not path.is_file() or path.stat().st_size == self.read:
            return []
        with path.open("rb") as file:
            file.seek(self.read)
            lines = file.read().splitlines(keepends=True)
            self.read = file.tell()
        return [json.loads(line) for line in lines]

    def remember(self) -> None:
        """Write down which run of each logger this one is, and what it was sent."""
        known = _known(self.output)
        for name, run_id in self.runs.items():
            known[name] = {"run_id": run_id, "sent": self.sent.get(name, -1)}
        write_atomically(self.output / LOGGED, json.dumps(known) + "\n")

    def close(self) -> None:
        for name, each in list(self.opened.items()):
            with self._warned(name):
                each.close(self.finished)

    @contextmanager
    def _warned(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            title = self.opened.pop(name).title
            logger.warning(
                "%s failed (%s) and gets no more of this training; all is in %s, and a resumed "
                "run sends what is missing",
                title, _one_line(error), self.output / METRICS,
            )  # fmt: skip


@contextmanager
def logging_rows(cfg: CfgNode) -> Iterator[list[SendRows]]:
    """Open the loggers of LOGGERS on the main process while the context lasts.

    Gives the hook to register after all others; none without loggers, or on other processes.

    Raises:
        BucketRankError: on all processes, if one could not be opened.
    """
    if not cfg.LOGGERS:
        yield []
        return
    hook, problem, output = None, None, Path(cfg.OUTPUT_DIR)
    if comm.is_main_process():
        known, opened = _known(output), {}
        for name in dict.fromkeys(cfg.LOGGERS):
            try:
                opened[name] = LOGGERS[name](cfg, known.get(name, {}).get("run_id"))
            except Exception as error:
                kind = LOGGERS[name]
                problem = f"{kind.title} cannot be used: {_one_line(error)}; {kind.hint}."
                break
        hook = SendRows(output, opened, {name: each["sent"] for name, each in known.items()})
    if problem := comm.all_gather(problem)[0]:
        if hook is not None:
            hook.close()
        raise BucketRankError(problem)
    if hook is None:
        yield []
        return
    hook.remember()
    try:
        yield [hook]
    finally:
        hook.close()


def send_missing_rows(output: Path, loggers: Sequence[str]) -> None:
    """Send loggers what they lack of the finished run in a folder: all, if they are new to it.

    Raises:
        BucketRankError: one cannot be used.
    """
    cfg = read_config(output)
    cfg.LOGGERS, cfg.OUTPUT_DIR = list(loggers), str(output)
    require_loggers(cfg)
    with logging_rows(cfg) as hooks:
        for hook in hooks:
            hook.finished = True
            hook.after_step()


def _known(output: Path) -> dict[str, Any]:
    path = output / LOGGED
    return json.loads(path.read_text()) if path.is_file() else {}


def _one_line(error: Exception) -> str:
    text = _ADDRESS.sub(r"\1\2", " ".join(str(error).split())).rstrip(".")
    return text or type(error).__name__
