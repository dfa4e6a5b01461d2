"""The times of the losses: what is in them, and that measuring leaves training alone."""

import time
from types import SimpleNamespace

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch.autograd import DeviceType
from torch.profiler import record_function

from bucketed_ranking.criterion import BOX_MARK, CLASSIFICATION_MARK
from bucketed_ranking.engine import loss_profiler
from bucketed_ranking.engine.loss_profiler import LossProfiler, measure_losses, times_of_marks
from tests.small_detectors import DETECTORS, narrow_config, random_batch


@pytest.mark.parametrize("loss", ["score", "brs"])
@pytest.mark.parametrize("detector", DETECTORS)
def test_measuring_the_losses_changes_nothing_in_training(detector, loss):
    def gradients(measured: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = build_model(narrow_config(detector, loss)).train()
        profiler = LossProfiler("cpu", max_iter=100)
        with EventStorage() as storage:
            profiler.trainer = SimpleNamespace(iter=20, start_iter=0, storage=storage)
            if measured:
                profiler.before_step()
            sum(model(random_batch()).values()).backward()
            if measured:
                profiler.after_step()
                (sample,) = profiler.samples
                assert set(sample) == {CLASSIFICATION_MARK, BOX_MARK}
                assert all(0 < milliseconds < 10_000 for milliseconds in sample.values())
            with torch.no_grad():
                again = model(random_batch())
        gradients = [parameter.grad for parameter in model.parameters()]
        return [*gradients, *again.values()]

    for expected, found in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("loss", ["score", "brs"])
@pytest.mark.parametrize(
    ("detector", "heads"), [("atss_tiny", 1), ("mask_rcnn_tiny", 2), ("cascade_rcnn_tiny", 4)]
)
def test_every_head_is_marked_once(detector, heads, loss, monkeypatch):
    seen: list[str] = []

    def count(events, marks):
        seen.extend(event.name() for event in events if event.name() in marks)
        return dict.fromkeys(marks, 0.0)

    monkeypatch.setattr(loss_profiler, "times_of_marks", count)
    torch.manual_seed(0)
    model = build_model(narrow_config(detector, loss)).train()
    with EventStorage(), measure_losses("cpu"):
        sum(model(random_batch()).values()).backward()
    assert seen.count(CLASSIFICATION_MARK) == seen.count(BOX_MARK) == heads


class Slow(torch.autograd.Function):
    """Takes about 20 ms forward and 40 ms backward."""

    @staticmethod
    def forward(ctx, x):
        return _wait(x, 0.02)

    @staticmethod
    def backward(ctx, gradient):
        return _wait(gradient, 0.04)


def _wait(x: torch.Tensor, seconds: float) -> torch.Tensor:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        x.sum()
    return x.clone()


def test_a_time_is_that_of_the_marked_forward_and_of_its_backward_alone():
    x = torch.ones(8, requires_grad=True)
    with measure_losses("cpu") as times:
        before = Slow.apply(x * 2)
        with record_function(CLASSIFICATION_MARK):
            marked = Slow.apply(before)
        with record_function(BOX_MARK):
            other = (before * 3).sum()
        after = Slow.apply(marked + 1)
        (after.sum() + other).backward()
    assert times[CLASSIFICATION_MARK] >= 60
    assert times[CLASSIFICATION_MARK] < 2 * 60 + 50  # not with what stands before and after it
    assert times[BOX_MARK] < 20


class Event:
    """As torch.profiler's, with what is looked at."""

    def __init__(self, name, start, end, device=DeviceType.CPU, **values):
        self.values = {
            "name": name, "start_ns": start, "end_ns": end, "duration_ns": end - start,
            "device_type": device, "sequence_nr": -1, "start_thread_id": 1, "fwd_thread_id": 0,
            "correlation_id": 0, "linked_correlation_id": 0, "is_user_annotation": False, **values,
        }  # fmt: skip

    def __getattr__(self, name):
        return lambda: self.values[name]


def test_on_a_gpu_it_is_the_time_of_the_device():
    backward = "autograd::engine::evaluate_function: MulBackward0"
    gpu = DeviceType.CUDA
    events = [
        Event("mark", 0, 10),
        Event("aten::mul", 1, 2, sequence_nr=5),
        Event("aten::add", 11, 12, sequence_nr=6),
        Event(backward, 30, 40, sequence_nr=6, start_thread_id=2, fwd_thread_id=1),
        Event(backward, 50, 60, sequence_nr=5, start_thread_id=2, fwd_thread_id=1),
        Event("aten::mul", 51, 52, start_thread_id=2, correlation_id=7),
        Event("aten::mul", 31, 32, start_thread_id=2, correlation_id=8),
        Event("mark", 100, 1_000_100, gpu, is_user_annotation=True),
        Event("kernel", 2_000_000, 4_000_000, gpu, linked_correlation_id=7),
        Event("kernel", 5_000_000, 9_000_000, gpu, linked_correlation_id=8),
    ]
    assert times_of_marks(events, ["mark"]) == {"mark": pytest.approx(3.0)}


def test_a_long_training_is_sampled_evenly_and_seldom():
    profiler = LossProfiler("cpu", max_iter=90_000)
    assert profiler.period == 1800
    assert LossProfiler("cpu", max_iter=300).period == 20


def test_the_median_of_the_samples():
    samples = [{CLASSIFICATION_MARK: c, BOX_MARK: 1.0} for c in (1.0, 9.0, 2.0)]
    assert loss_profiler.summarise_samples([*samples, {}]) == {
        "loss_ms": 3.0, "classification_loss_ms": 2.0,
    }  # fmt: skip
    assert set(loss_profiler.summarise_samples([]).values()) == {None}
