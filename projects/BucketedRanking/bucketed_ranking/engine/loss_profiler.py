"""How long the losses of a training step take, read from marks by torch.profiler.

What is in the numbers: the criterion marks its ranking loss, which computes the gradients of the
logits in its forward pass, and its box loss, both by `torch.profiler.record_function`. In
Detectron2's own heads, ATSS and PAA, the calls of focal loss, cross-entropy and the box loss (in
Detectron2's heads with the targets that it makes) are marked while a step is measured and at no
other time. A number is the time between the ends of these marks plus that of the autograd nodes
that were made between them: forward and backward, summed over all heads. Choosing positives,
one-hot targets, gathering logits and the mask loss are not in it, nor is the quality branch of ATSS
and PAA.

On a CPU this is wall-clock time. On a GPU it is the time from the start of a mark's first kernel to
the end of its last one, and of the backward nodes the sum of their kernels. The profiler adds a
microsecond or two to each operator, which weighs most on the loops.
"""

import math
import os
import statistics
from bisect import bisect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from detectron2.engine import HookBase
from detectron2.modeling.meta_arch import retinanet
from detectron2.modeling.proposal_generator import rpn
from detectron2.modeling.roi_heads import fast_rcnn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from ..criterion import BOX_MARK, CLASSIFICATION_MARK
from ..modeling import quality
from .hooks import WARM_UP_ITERATIONS

_BACKWARD = "autograd::engine::evaluate_function: "
_MOST_SAMPLES = 50

# Kineto, below the profiler, else tells of every start and stop; it reads this only once.
os.environ.setdefault("KINETO_LOG_LEVEL", "9")


@contextmanager
def measure_losses(device: str) -> Iterator[dict[str, float]]:
    """Measure the losses of the training step inside the `with` statement.

    Yields:
        Milliseconds by mark, CLASSIFICATION_MARK and BOX_MARK; empty until the statement ends.
    """
    on_gpu = device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    times: dict[str, float] = {}
    with profile(activities=activities) as profiler, _marked_score_losses():
        yield times
        if on_gpu:
            torch.cuda.synchronize(device)
    # The public events are the same, but building their tree takes longer than the step.
    events = profiler.profiler.kineto_results.events()
    times |= times_of_marks(events, (CLASSIFICATION_MARK, BOX_MARK))


def times_of_marks(events: Sequence[Any], marks: Sequence[str]) -> dict[str, float]:
    """Milliseconds of the stretches with these names, forward and backward.

    Args:
        events: what the profiler has recorded, as torch's `_KinetoEvent`.
    """
    operators = [event for event in events if event.device_type() == DeviceType.CPU]
    of_device = [event for event in events if event.device_type() != DeviceType.CPU]
    backward = [event for event in operators if event.name().startswith(_BACKWARD)]
    numbered = sorted(
        (event.start_ns(), event.sequence_nr(), event.start_thread_id())
        for event in operators
        if event.sequence_nr() >= 0 and not event.name().startswith(_BACKWARD)
    )
    nanoseconds = dict.fromkeys(marks, 0)
    for event in of_device if of_device else operators:
        if event.name() in nanoseconds:
            nanoseconds[event.name()] += event.duration_ns()
    for begun in operators:
        if begun.name() not in nanoseconds:
            continue
        # An operator carries the number of the autograd node that its thread makes next.
        later = [
            (start, number)
            for start, number, thread in numbered[bisect(numbered, (begun.start_ns(),)) :]
            if thread == begun.start_thread_id()
        ]
        first = later[0][1] if later else 0
        end = next((number for start, number in later if start > begun.end_ns()), math.inf)
        nodes = [
            event
            for event in backward
            if event.fwd_thread_id() == begun.start_thread_id()
            and first <= event.sequence_nr() < end
        ]
        nanoseconds[begun.name()] += (
            _kernel_time(nodes, operators, of_device)
            if of_device
            else sum(node.duration_ns() for node in nodes)
        )
    return {mark: value / 1e6 for mark, value in nanoseconds.items()}


def _kernel_time(nodes: Sequence[Any], operators: Sequence[Any], of_device: Sequence[Any]) -> int:
    """Nanoseconds of the kernels that autograd nodes have launched."""
    launched: dict[int, int] = {}
    for event in of_device:
        if not event.is_user_annotation():
            identity = event.linked_correlation_id()
            launched[identity] = launched.get(identity, 0) + event.duration_ns()
    launching = [event for event in operators if event.correlation_id() in launched]
    return sum(
        launched[event.correlation_id()]
        for event in launching
        for node in nodes
        if event.start_thread_id() == node.start_thread_id()
        and node.start_ns() <= event.start_ns() <= node.end_ns()
    )


@contextmanager
def _marked_score_losses() -> Iterator[None]:
    """Mark the losses of the score-based heads, inside the `with` statement alone."""
    layers = fast_rcnn.FastRCNNOutputLayers
    with ExitStack() as stack:
        for owner, name, mark in (
            (retinanet, "sigmoid_focal_loss_jit", CLASSIFICATION_MARK),
            (retinanet, "_dense_box_regression_loss", BOX_MARK),
            (quality, "sigmoid_focal_loss_jit", CLASSIFICATION_MARK),
            (quality, "giou_losses", BOX_MARK),
            (fast_rcnn, "cross_entropy", CLASSIFICATION_MARK),
            (layers, "sigmoid_cross_entropy_loss", CLASSIFICATION_MARK),
            (layers, "box_reg_loss", BOX_MARK),
            (rpn, "_dense_box_regression_loss", BOX_MARK),
        ):
            stack.enter_context(patch.object(owner, name, _marked(getattr(owner, name), mark)))
        # The RPN's only use of torch.nn.functional is its objectness loss; others use it, too.
        objectness = "binary_cross_entropy_with_logits"
        marked = _marked(getattr(rpn.F, objectness), CLASSIFICATION_MARK)
        functional = SimpleNamespace(**{**vars(rpn.F), objectness: marked})
        stack.enter_context(patch.object(rpn, "F", functional))
        yield


def _marked(function: Any, mark: str) -> Any:
    def call(*arguments: Any, **options: Any) -> Any:
        with record_function(mark):
            return function(*arguments, **options)

    return call


class LossProfiler(HookBase):
    """Measures the losses of every twentieth iteration, at most of some fifty in a training.

    See the module for what is measured. The median of the step's time hardly feels it.
    """

    def __init__(self, device: str, max_iter: int):
        self.device = device
        self.period = max(20, max_iter // _MOST_SAMPLES)
        self.samples: list[dict[str, float]] = []
        self._measuring = ExitStack()

    def before_step(self) -> None:
        iteration = self.trainer.iter - self.trainer.start_iter
        if iteration >= WARM_UP_ITERATIONS and iteration % self.period == 0:
            self.samples.append(self._measuring.enter_context(measure_losses(self.device)))

    def after_step(self) -> None:
        self._measuring.close()

    def after_train(self) -> None:
        self._measuring.close()  # of a step that failed


def summarise_samples(samples: list[dict[str, float]]) -> dict[str, float | None]:
    """Median milliseconds of all losses and of the classification loss; None without samples."""
    complete = [sample for sample in samples if sample]
    sums = [sum(sample.values()) for sample in complete]
    classification = [sample[CLASSIFICATION_MARK] for sample in complete]
    return {
        "loss_ms": statistics.median(sums) if sums else None,
        "classification_loss_ms": statistics.median(classification) if sums else None,
    }
