"""Loggers: what they are sent, which run of theirs it goes to, and what becomes of their failures.

The clients are stand-ins, with what of them is used here; where the real ones are installed they
are tried too, without a network.
"""

import importlib.machinery
import importlib.util
import math
import sys
import time
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from bucketed_ranking import train
from bucketed_ranking.engine import run_folder, runs
from bucketed_ranking.engine.loggers import (
    MlflowLogger,
    WandbLogger,
    public_config,
    send_missing_rows,
)
from bucketed_ranking.engine.trainer import Trainer
from bucketed_ranking.errors import BucketRankError
from tests.engine.test_runs import run_config

BOTH = ("LOGGERS", "['wandb', 'mlflow']", "TEST.EVAL_PERIOD", "2", "DATALOADER.NUM_WORKERS", "0")
ROWS = [
    {"iteration": 19, "loss": 0.5, "bbox/AP": math.nan},
    {"iteration": 39, "loss": 0.25, "bbox/per_class/Größe (L)//": 12.5},
]


class Clients:
    """Stand-ins for both, and what they were told.

    Attributes:
        rows: by run, the rows that wandb was sent.
        metrics: by run, those that MLflow was sent.
        ends: how runs ended, in order.
        fails: raised by MLflow when it is sent metrics.
    """

    def __init__(self):
        self.rows: dict[str, list[dict]] = {}
        self.metrics: dict[str, list[dict]] = {}
        self.ends: list[tuple[str, str, Any]] = []
        self.configs: list[dict] = []
        self.mode, self.fails = "offline", None

    def wandb(self) -> ModuleType:
        def init(id=None, *, config, resume, **how):
            assert resume == "allow"
            run_id = id or "first"
            rows = self.rows.setdefault(run_id, [])
            self.configs.append(config)

            def log(row, step, commit):
                assert (step, commit) == (row["iteration"], True)
                rows.append(row)

            end = lambda exit_code: self.ends.append(("wandb", run_id, exit_code))  # noqa: E731
            return SimpleNamespace(id=run_id, log=log, finish=end)

        return standin(
            "wandb",
            init=init,
            setup=lambda: SimpleNamespace(settings=SimpleNamespace(mode=self.mode)),
            login=lambda prompt, verify: False,
            Settings=lambda **values: values,
        )

    def mlflow(self) -> tuple[ModuleType, ModuleType]:
        clients = self

        class Client:
            def __init__(self, uri):
                assert uri.startswith("sqlite:////")

            def get_experiment_by_name(self, name):
                return None

            def create_experiment(self, name, artifacts):
                return name

            def create_run(self, experiment, run_name):
                clients.metrics["a"] = []
                return SimpleNamespace(info=SimpleNamespace(run_id="a"))

            def update_run(self, run_id, status):
                assert (run_id, status) == ("a", "RUNNING")

            def log_batch(self, run_id, params=(), metrics=()):
                assert len(params) <= 100
                if metrics and clients.fails:
                    raise clients.fails
                if metrics:
                    clients.metrics[run_id].append({key: value for key, value, *_ in metrics})

            def set_terminated(self, run_id, status):
                clients.ends.append(("mlflow", run_id, status))

        entities = standin("mlflow.entities", Param=lambda *v: v, Metric=lambda *v: v)
        return standin("mlflow", MlflowClient=Client), entities


def standin(name: str, **content: Callable) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(module).update(content)
    return module


@pytest.fixture
def clients(monkeypatch) -> Clients:
    found = Clients()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for module in (found.wandb(), *found.mlflow()):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return found


@pytest.mark.usefixtures("blobs")
def test_each_row_is_sent_once_to_one_run_whatever_stops_the_training(
    tmp_path, monkeypatch, clients, capsys
):
    step = Trainer.run_step

    def killed(self):
        if self.iter == 5:
            raise RuntimeError("power cut")
        step(self)

    # MLflow fails, and then training does.
    clients.fails = OSError("http://user:secret@host does not answer")
    monkeypatch.setattr(Trainer, "run_step", killed)
    with pytest.raises(RuntimeError, match="power cut"):
        runs.train(run_config(tmp_path, *BOTH))
    monkeypatch.setattr(Trainer, "run_step", step)
    warned = capsys.readouterr().err
    assert warned.count("MLflow failed (http://host does not answer)") == 1
    assert [row["iteration"] for row in clients.rows["first"]] == [1, 3]
    assert clients.metrics == {"a": []}
    assert clients.ends == [("wandb", "first", 1)]

    # The third step is done again, not sent again; MLflow gets what it lacks in the end.
    runs.train(run_config(tmp_path, *BOTH), resume=True)
    assert clients.metrics == {"a": []}
    clients.fails = None
    clients.ends.clear()
    send_missing_rows(tmp_path, ["wandb", "mlflow"])
    send_missing_rows(tmp_path, [])
    rows = run_folder.read_metrics(tmp_path)
    assert [row["iteration"] for row in rows] == [1, 3, 5, 6]
    times = {"time", "data_time", "rank_data_time", "eta_seconds"}  # of one step they are others
    assert [set(row) - times for row in clients.rows["first"]] == [set(row) - times for row in rows]
    assert [row.get("bbox/AP") for row in clients.rows["first"]] == [
        row.get("bbox/AP") for row in rows
    ]
    assert [row["iteration"] for row in clients.metrics["a"]] == [1, 3, 5, 6]
    assert clients.ends == [("wandb", "first", 0), ("mlflow", "a", "FINISHED")]

    # A logger of which the run did not know is told of the run, not of the command that names it.
    (tmp_path / run_folder.LOGGED).unlink()
    clients.rows.clear()
    config = str(tmp_path / run_folder.CONFIG)
    train(config, output=tmp_path, resume=True, log=["wandb"], options={"SOLVER.BASE_LR": 9.0})
    assert [row["iteration"] for row in clients.rows["first"]] == [1, 3, 5, 6]
    told = run_folder.read_config(tmp_path)
    assert clients.configs[-1]["SOLVER"]["BASE_LR"] == told.SOLVER.BASE_LR != 9.0
    assert clients.configs[-1]["SEED"] == told.SEED
    assert "is finished: what loggers lack of it is sent." in capsys.readouterr().out


@pytest.mark.usefixtures("blobs")
def test_a_logger_that_cannot_be_used_ends_it_before_the_training(tmp_path, clients, monkeypatch):
    clients.mode = "online"
    cfg = run_config(tmp_path, "LOGGERS", "['wandb']")
    for _ in range(2):  # the folder may be used again
        with pytest.raises(BucketRankError, match=r"cannot be used: it has no API key.*offline"):
            runs.train(cfg)
    assert not (tmp_path / run_folder.RECORD).exists()
    monkeypatch.delitem(sys.modules, "wandb")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BucketRankError, match=r"pip install 'bucketrank\[wandb\]'"):
        runs.train(cfg)
    with pytest.raises(BucketRankError, match="LOGGERS has 'tb'; it takes some of wandb, mlflow"):
        runs.train(run_config(tmp_path, "LOGGERS", "['tb']"))


@pytest.mark.usefixtures("blobs")
def test_no_logger_is_told_what_may_be_secret(tmp_path):
    address = "https://me:secret@host/model.pth?signature=secret"
    told = public_config(run_config(tmp_path, "MODEL.WEIGHTS", address))
    assert told["MODEL"]["WEIGHTS"] == "https://host/model.pth"
    assert told["SOLVER"]["MAX_ITER"] == 6


@pytest.mark.usefixtures("blobs")
def test_the_config_hash_leaves_the_loggers_out(tmp_path):
    hashes = {run_folder.config_hash(run_config(tmp_path, *how)) for how in ((), BOTH[:2])}
    assert len(hashes) == 1


@pytest.mark.usefixtures("blobs")
def test_wandb_itself_takes_rows_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed: pip install 'bucketrank[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    cfg = run_config(tmp_path)
    first = WandbLogger(cfg, None)
    first.send(ROWS[0])
    first.close(finished=False)
    second = WandbLogger(cfg, first.run_id)
    second.send(ROWS[1])
    second.close(finished=True)
    assert second.run_id == first.run_id
    expected = {b"MAX_ITER", b"bbox/AP", "bbox/per_class/Größe (L)//".encode(), b"12.5"}
    end = time.monotonic() + 60  # another process writes the files
    while expected and time.monotonic() < end:
        files = tmp_path.glob(f"wandb/offline-run-*/run-{first.run_id}.wandb")
        written = b"".join(path.read_bytes() for path in files)
        expected = {each for each in expected if each not in written}
    assert not expected


@pytest.mark.usefixtures("blobs")
def test_mlflow_itself_takes_rows_in_a_file(tmp_path, monkeypatch):
    mlflow = pytest.importorskip(
        "mlflow", reason="mlflow is not installed: pip install 'bucketrank[mlflow]'"
    )
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    cfg = run_config(tmp_path)
    first = MlflowLogger(cfg, None)
    first.send(ROWS[0])
    first.close(finished=False)
    second = MlflowLogger(cfg, first.run_id)
    second.send(ROWS[1])
    second.close(finished=True)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    found = client.get_run(first.run_id)
    assert (found.info.status, found.info.run_name) == ("FINISHED", tmp_path.name)
    assert found.data.params["SOLVER.MAX_ITER"] == "6"
    history = client.get_metric_history(first.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(19, 0.5), (39, 0.25)]
    assert found.data.metrics["bbox/per_class/Größe _L_"] == 12.5
