"""What docs/results/gpu.md reports of a GPU, again: give it the parts that are wanted.

python tools/gpu_check.py [exactness] [waits] [launches] [focal]

exactness: losses and gradients of the exact losses against float64, and whether runs are equal.
waits: the lines that make the host wait in one training step of each tiny detector.
launches: how many operations a loss starts, and how long they keep the device busy.
focal: focal loss, eager and compiled, beside rs-exact.
"""

import sys
import traceback
import warnings
from collections import Counter
from itertools import product
from statistics import median
from unittest import mock

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bucketed_ranking.benchmarks import loss_cases, timing
from bucketed_ranking.benchmarks.loss_cases import Case, GridPoint, LossCalls, make_case
from bucketed_ranking.benchmarks.timing import TimingOptions
from bucketed_ranking.losses import RankingLoss, autograd

DEVICE = torch.device("cuda")
SIZES = ((1, 1e3), (10, 1e3), (100, 1e5), (1000, 1e6), (5000, 1e6), (20_000, 1e6), (1000, 1e7))
DEFINITION_UP_TO = 1000  # positives; above, the reference is the exact algorithm in float64
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def made(regime: str, positives: int, negatives: float, dtype: torch.dtype = torch.float32) -> Case:
    """A made-up case on the GPU."""
    return make_case(
        GridPoint(regime, positives, int(negatives)), dtype=dtype, device="cuda", seed=0
    )


def losses_and_gradient(name: str, case: Case, fuse: bool) -> tuple[Tensor, Tensor]:
    """The losses, and the gradient of their sum with weights 1, 2, ..."""
    logits, loss = case.logits.detach().clone().requires_grad_(), RankingLoss(name)
    boxes = case.box_losses.to(torch.promote_types(logits.dtype, torch.float32)).requires_grad_()
    given = case.positives, case.qualities, None, boxes if loss.objective == "alrp" else None
    with mock.patch.object(autograd, "_can_fuse", return_value=fuse):
        found = loss.forward_indexed(logits, *given)
    sum(weight * value for weight, value in enumerate(found.values(), 1)).backward()
    return torch.stack(list(found.values())).detach().double(), logits.grad.double()


def check_exactness() -> None:
    """One line for each case: relative errors, and gradients that differ between three runs."""
    for (positives, negatives), regime, dtype in product(SIZES, ("start", "trained"), DTYPES):
        case = made(regime, positives, negatives, dtype)
        precise = precise_of(case)
        for objective in ("rs", "ap", "alrp"):
            by_definition = objective if positives <= DEFINITION_UP_TO else f"{objective}-exact"
            expected = losses_and_gradient(by_definition, precise, fuse=False)
            for fuse in (True, False):
                runs = [losses_and_gradient(f"{objective}-exact", case, fuse) for _ in range(3)]
                errors = [
                    ((a - b).norm() / b.norm().clamp(min=1e-300)).item()
                    for a, b in zip(runs[0], expected, strict=True)
                ]
                differ = max(int((run[1] != runs[0][1]).sum()) for run in runs)
                kind = "kernels" if fuse and dtype != torch.float64 else "PyTorch"
                print(
                    f"{case.name}, {objective}-exact, {str(dtype)[6:]}, {kind}: losses "
                    f"{errors[0]:.1e}, gradient {errors[1]:.1e} off; {differ} differ between runs",
                    flush=True,
                )


def precise_of(case: Case) -> Case:
    """The same numbers in float64."""
    logits, *values = (each.double() for each in (case.logits, case.qualities, case.box_losses))
    return Case(case.name, logits, case.positives, *values)


def check_waits() -> None:
    """Every tiny detector: the callers of what synchronises, and how often."""
    from detectron2.modeling import build_model
    from detectron2.utils.events import EventStorage

    from bucketed_ranking.benchmarks.training_steps import make_input
    from bucketed_ranking.engine import setup
    from bucketed_ranking.zoo import available_configs

    for config in (name for name in available_configs() if name.endswith("_tiny")):
        options = ["MODEL.WEIGHTS", ""]
        cfg = setup.load_config(config, loss="rs-exact", options=options, device="cuda")
        model, generator = build_model(cfg).train(), torch.Generator().manual_seed(0)
        batch = [make_input(cfg, (192, 256), generator) for _ in range(2)]
        places: Counter[str] = Counter()

        def note(message: object, *_: object, places: Counter[str] = places, **__: object) -> None:
            if "synchroniz" in str(message):
                frames = traceback.extract_stack()[:-1]
                ours = [f for f in frames if "bucketed_ranking" in f.filename] or frames
                places[f"{ours[-1].filename.split('bucketed_ranking/')[-1]}:{ours[-1].lineno}"] += 1

        with EventStorage(), warnings.catch_warnings():
            for _ in range(2):
                sum(model(batch).values()).backward()
            torch.cuda.synchronize()
            warnings.simplefilter("always")
            warnings.showwarning = note
            torch.cuda.set_sync_debug_mode("warn")
            sum(model(batch).values()).backward()
            torch.cuda.set_sync_debug_mode("default")
        print(f"{config}: the host waits {places.total()} times")
        for place, count in places.most_common():
            print(f"  {count:3d}  {place}", flush=True)


def check_launches() -> None:
    """Operations started, and how long the device worked on the longest of them."""
    for name, regime, positives, negatives in (
        ("focal", "start", 1000, 1e6), ("rs-exact", "start", 1000, 1e6),
        ("rs-exact", "trained", 20_000, 1e6), ("rs-exact", "trained", 1000, 1e8),
    ):  # fmt: skip
        call = LossCalls(made(regime, positives, negatives)).build(name)
        for _ in range(3):
            call()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
            call()
            torch.cuda.synchronize()
        events = [e for e in profiled.key_averages() if e.device_type.name == "CUDA"]
        events.sort(key=lambda event: -event.self_device_time_total)
        total = sum(event.self_device_time_total for event in events) / 1e3
        started = sum(event.count for event in events)
        print(
            f"{name}, {regime}, P = {positives:,}, N = {negatives:.0e}: {started}, {total:.3f} ms"
        )
        for event in events[:8]:
            print(
                f"  {event.self_device_time_total / 1e3:8.3f} ms {event.count:4d}  {event.key[:90]}"
            )


def check_focal() -> None:
    """Medians of nine, milliseconds, forward and backward."""
    options = TimingOptions(repeats=9, warmup=4)
    compiled = torch.compile(loss_cases._focal_loss(), dynamic=True)
    for negatives in (1e6, 1e7, 1e8):
        cases = LossCalls(made("trained", 1000, negatives))
        calls = {name: cases.build(name) for name in ("focal", "rs-exact")}
        with mock.patch.object(loss_cases, "_focal_loss", return_value=compiled):
            calls["compiled"] = cases.build("focal")
        timings = [timing.Timing(name) for name in calls]
        for each in timings:
            timing.warm_up(each, calls[each.name], DEVICE, options)
        timing.time_calls(timings, calls, DEVICE, options)
        found = ", ".join(f"{each.name} {1e3 * median(each.seconds):.2f}" for each in timings)
        print(f"N = {negatives:.0e}: {found} ms", flush=True)


CHECKS = {
    "exactness": check_exactness,
    "waits": check_waits,
    "launches": check_launches,
    "focal": check_focal,
}

if __name__ == "__main__":
    wanted = sys.argv[1:] or list(CHECKS)
    if not torch.cuda.is_available() or not set(wanted) <= set(CHECKS):
        sys.exit(f"{__doc__}\nIt needs a GPU.")
    print(torch.cuda.get_device_name(), torch.__version__)
    for part in wanted:
        CHECKS[part]()
