"""Detectors on several processes with one global ranking equal one process with all images."""

from collections.abc import Callable, Iterable
from itertools import product

import pytest
import torch
from torch import Tensor

from tests.parallel_steps import detector_parts, images_of, same_image, step
from tests.processes import run_processes
from tests.small_detectors import DETECTORS

EXACT = ("ap-exact", "alrp-exact", "rs-exact")
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}
# Objects of the images of each process. Of the first two, one process has no objects at all.
SPLITS = {2: (((3, 2), (0,)), ((0,), (0, 0)), ((1, 0), (2, 4))), 4: (((2,), (0,), (3, 1), (0, 1)),)}


def _cases(
    processes: int, detectors: tuple[str, ...], losses: tuple[str, ...], dtype: torch.dtype
) -> list[tuple]:
    return list(product(detectors, losses, [dtype], [images_of], SPLITS[processes], [()]))


def _extra_queries() -> tuple:
    """Co-DETR's queries from positives: with at least nine in an image and as many on both
    processes, no negatives fill up. The images being the same, RS would sort positives by
    differences of rounding; AP does not."""
    options = "MODEL.CODETR.MAX_EXTRA_QUERIES", "300"
    given = same_image, ((12,), (12,)), options
    return "co_deformable_detr_tiny", "ap-exact", torch.float64, *given


def _check(processes: int, cases: list[tuple], relative_error: Callable) -> None:
    results = run_processes(processes, detector_parts, cases)
    for case, *found in zip(cases, *results, strict=True):
        detector, loss, dtype, make, parts, options = case
        batch = [image for part in make(parts) for image in part]
        losses, grads = step(detector, loss, dtype, batch, options)
        for found_losses, found_grads in found:
            assert found_losses.keys() == losses.keys()
            for name, value in losses.items():
                assert relative_error(found_losses[name], value) <= TOLERANCES[dtype], (case, name)
            # The gradient of a bias before a normalisation is rounding and nothing else.
            rounding = torch.finfo(dtype).eps * _norm(grads.values())
            for name, grad in grads.items():
                error, norm = (found_grads[name] - grad).norm(), grad.norm()
                assert error <= TOLERANCES[dtype] * norm + rounding, (case, name, error, norm)


def _norm(tensors: Iterable[Tensor]) -> Tensor:
    return torch.stack([tensor.norm() for tensor in tensors]).norm()


def test_losses_and_gradients_are_those_of_one_process(relative_error: Callable) -> None:
    detectors = ("retinanet_tiny", "faster_rcnn_tiny", "cascade_mask_rcnn_tiny")
    cases = _cases(2, detectors, EXACT, torch.float32)
    _check(2, [*cases, _extra_queries()], relative_error)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "losses"), [(2, EXACT), (4, ("rs-exact",))])
def test_so_are_those_of_every_detector(
    processes: int, losses: tuple[str, ...], relative_error: Callable
) -> None:
    _check(processes, _cases(processes, DETECTORS, losses, torch.float64), relative_error)
