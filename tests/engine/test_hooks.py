"""Hooks on their own: timing leaves training alone, metrics are trimmed."""

import json
from types import SimpleNamespace

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from bucketed_ranking.engine.hooks import (
    LossTimer,
    StepTimer,
    _detached,
    drop_metrics_after,
)
from tests.small_detectors import DETECTORS, narrow_config, random_batch


@pytest.mark.parametrize("loss", ["score", "brs"])
@pytest.mark.parametrize("detector", DETECTORS)
def test_timing_the_losses_changes_nothing_in_training(detector, loss):
    def gradients(timed: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = build_model(narrow_config(detector, loss)).train()
        timer = LossTimer(model, "cpu", period=1)
        with EventStorage() as storage:
            timer.trainer = SimpleNamespace(iter=20, start_iter=0, storage=storage)
            if timed:
                timer.before_step()
            losses = model(random_batch())
            sum(losses.values()).backward()
            if timed:
                timer.after_step()
                assert timer.median_milliseconds() > 0
                assert timer.median_classification_milliseconds() > 0
                heads = 4 if "cascade" in detector else 2 if "rcnn" in detector else 1
                assert len(timer.heads) == heads
            with torch.no_grad():
                again = model(random_batch())
        gradients = [parameter.grad for parameter in model.parameters()]
        return [*gradients, *again.values()]

    for expected, found in zip(gradients(timed=False), gradients(timed=True), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("loss", ["score", "brs", "rs-exact", "alrp"])
@pytest.mark.parametrize("detector", ["retinanet_tiny", "atss_tiny", "cascade_rcnn_tiny"])
def test_the_classification_loss_alone_is_that_of_the_heads(detector, loss):
    """Its gradient with respect to the logits is that of all the losses of a head, up to scale."""
    torch.manual_seed(0)
    model = build_model(narrow_config(detector, loss)).train()
    timer = LossTimer(model, "cpu", period=1)
    timed = []
    timer._time = lambda call: timed.append(call) or 1.0
    with EventStorage() as storage:
        timer.trainer = SimpleNamespace(iter=20, start_iter=0, storage=storage)
        timer.before_step()
        model(random_batch())
        timer.after_step()
        heads, classifications = timed[: len(timer.heads)], timed[len(timer.heads) :]
        assert len(heads) == len(classifications)
        for head, classification in zip(heads, classifications, strict=True):
            arguments = _detached(head.arguments)
            sum(head.losses(*arguments).values()).backward()
            logits = arguments[0][0] if isinstance(arguments[0], tuple) else arguments[1]
            levels = [logits] if isinstance(logits, torch.Tensor) else logits
            expected = torch.cat([level.grad for level in levels], dim=1).flatten()
            arguments = _detached(classification.arguments)
            options = _detached(classification.options)
            sum(classification.losses(*arguments, **options).values()).backward()
            found = arguments[0].grad.flatten()
            torch.testing.assert_close(found / found.norm(), expected / expected.norm())


def test_without_enough_steps_there_is_no_time():
    timer = StepTimer("cpu")
    timer.seconds = [9.0] * 10
    assert timer.median_seconds() is None
    timer.seconds += [1.0, 3.0, 2.0]
    assert timer.median_seconds() == 2.0


def test_metrics_written_after_the_last_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("".join(json.dumps({"iteration": i}) + "\n" for i in (19, 39, 59)))
    drop_metrics_after(path, 40)
    assert path.read_text() == '{"iteration": 19}\n{"iteration": 39}\n'
    drop_metrics_after(tmp_path / "none.json", 40)
    assert not (tmp_path / "none.json").exists()
