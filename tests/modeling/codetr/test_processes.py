"""Extra queries on two processes with one global ranking."""

import torch

from tests.parallel_steps import extra_query_parts, images, step_with_extra_queries
from tests.processes import run_processes


def test_extra_queries_of_two_processes(relative_error):
    """With as many positives on both, at least nine, no negative fills up: then losses and
    gradients are those of one process with both images. With none on one, all still agree.

    The images being the same, RS would sort positives by differences of rounding; AP does not.
    """
    (same,), (many, none) = images((12,)), images((12, 0))
    batches = [[same, same], [many, none]]
    found = run_processes(2, extra_query_parts, batches)
    for first, second in zip(*found, strict=True):
        names = [name for name in first[0] if "_queries_" in name]
        assert len(names) == 6
        for name in names:
            assert first[0][name].isfinite()
            assert first[0][name] > 0
            assert relative_error(second[0][name], first[0][name]) < 1e-12
        assert all(torch.equal(grad, second[1][name]) for name, grad in first[1].items())
    losses, grads = step_with_extra_queries([same, same])
    parallel_losses, parallel_grads = found[0][0]
    for name, value in losses.items():
        assert relative_error(parallel_losses[name], value) < 1e-10, name
    total = torch.stack([grad.norm() for grad in grads.values()]).norm()
    for name, grad in grads.items():
        assert (parallel_grads[name] - grad).norm() <= 1e-10 * grad.norm() + 1e-14 * total, name
