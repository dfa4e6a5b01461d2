"""Image workers begin, whatever happened in the fork."""

import os
import select
import socket
import time
from multiprocessing.reduction import DupFd

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from bucketed_ranking.engine import image_workers
from bucketed_ranking.engine.image_workers import fork_workers


@pytest.fixture
def hang_in_fork(tmp_path):
    """Lets that many children wait for ever before any code of theirs runs, as a lock would that
    another thread had taken."""
    parent = os.getpid()

    def after_fork() -> None:
        if os.getppid() == parent and (left := sorted(tmp_path.glob("hang-*"))):
            left[0].unlink()
            time.sleep(10_000)

    os.register_at_fork(after_in_child=after_fork)
    yield lambda count: [(tmp_path / f"hang-{number}").touch() for number in range(count)]
    for path in tmp_path.glob("hang-*"):
        path.unlink()


@pytest.mark.timeout(60)
def test_workers_that_hang_in_the_fork_are_started_anew(hang_in_fork, monkeypatch, caplog):
    monkeypatch.setattr(image_workers, "_FORK_SECONDS", 0.3)
    loader = DataLoader(TensorDataset(torch.arange(8)), batch_size=2, num_workers=2)
    fork_workers(loader)
    hang_in_fork(3)
    found = [int(value) for (batch,) in loader for value in batch]
    assert found == list(range(8))
    assert caplog.text.count("did not begin") == 3
    left = os.popen(f"ps -o stat= --ppid {os.getpid()}").read().split()
    assert len([state for state in left if state[0] != "Z"]) <= 1  # ps itself


def test_a_loader_without_workers_is_left_alone():
    loader = DataLoader(TensorDataset(torch.arange(2)), num_workers=0)
    fork_workers(loader)
    assert len(list(loader)) == 2


class _Disconnects(Dataset):
    """Its worker offers a file as it offers pictures, and is left in the middle of the answer."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        address, _ = DupFd(0)._id
        with socket.socket(socket.AF_UNIX) as trainer:
            trainer.connect(address)
            select.select([trainer], [], [])  # the challenge has come, and is never read
        time.sleep(0.3)
        return index


@pytest.mark.timeout(60)
def test_a_trainer_that_goes_in_the_middle_is_no_error_of_its_workers(capfd):
    loader = DataLoader(_Disconnects(), num_workers=1)
    assert len(list(loader)) == 1
    assert "ConnectionResetError" in capfd.readouterr().err  # as it is without fork_workers
    fork_workers(loader)
    assert len(list(loader)) == 1
    assert capfd.readouterr().err == ""
