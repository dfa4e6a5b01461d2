"""The Triton kernels against the definition: on a GPU, else in Triton's interpreter."""

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from bucketed_ranking.losses import RankingLoss, autograd
from bucketed_ranking.losses.bucketed import Buckets
from bucketed_ranking.losses.exact import Bins

pytest.importorskip("triton", reason="triton is not installed")

CAN_FUSE = autograd._can_fuse  # before the fixture puts another in its place
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KINDS = ("normal", "trained", "solved", "quarters", "large", "tiny", "shifted", "infinite")


@pytest.fixture(scope="module")
def fused() -> Iterator[ModuleType]:
    """The module, used on any device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autograd, "_can_fuse", lambda device: True)
        yield importlib.import_module("bucketed_ranking.losses.fused")


def _run(name: str, case: dict, dtype: torch.dtype, delta: float) -> list:
    """Losses and gradients; in float64 by the definition."""
    values = {key: value.clone().to(DEVICE) for key, value in case.items()}
    logits = values.pop("logits").to(dtype).requires_grad_()
    boxes = values.pop("box_losses").to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    loss = RankingLoss(name, delta=delta)
    needs_boxes = loss.objective == "alrp"
    found = loss.forward_indexed(logits, **values, box_losses=boxes if needs_boxes else None)
    sum(weight * value for weight, value in enumerate(found.values(), 1)).backward()
    return [torch.stack(list(found.values())), logits.grad, *([boxes.grad] if needs_boxes else [])]


def _case(make_case: Callable, kind: str, positives: int, rows: int, columns: int, seed: int):
    negatives = rows * columns + -positives % columns
    given = make_case(positives, negatives, "normal" if kind == "infinite" else kind, seed=seed)
    logits, generator = given.logits, torch.Generator().manual_seed(seed)
    if kind == "infinite":
        places = (~given.is_positive).nonzero().squeeze(1)
        logits[places[::3]], logits[places[1::3]] = torch.inf, -torch.inf
    order = torch.randperm(positives, generator=generator)
    places = given.is_positive.nonzero().squeeze(1)[order]
    return {
        "logits": logits.view(-1, columns), "positives": places,
        "ignored_rows": torch.rand(len(logits) // columns, generator=generator) < 0.2,
        "qualities": given.targets[places], "box_losses": given.box_losses,
    }  # fmt: skip


@settings(max_examples=30, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    name=st.sampled_from(["ap-exact", "alrp-exact", "rs-exact"]),
    delta=st.sampled_from([0, 0.1, 0.5, 1]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    positives=st.one_of(st.integers(1, 4), st.integers(1, 150)),
    rows=st.integers(0, 400),
    columns=st.sampled_from([1, 4]),
    kind=st.sampled_from(KINDS),
    ignores=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_the_definition(
    fused: ModuleType,
    make_case: Callable,
    relative_error: Callable,
    name: str,
    delta: float,
    dtype: torch.dtype,
    positives: int,
    rows: int,
    columns: int,
    kind: str,
    ignores: bool,
    seed: int,
) -> None:
    case = _case(make_case, kind, positives, rows, columns, seed)
    case["logits"] = case["logits"].clamp(-3e4, 3e4).to(dtype)  # large ones fit float16
    if not ignores:
        del case["ignored_rows"]
    spread = fused.FusedBins.spread
    with mock.patch.object(fused.FusedBins, "spread", autospec=True, side_effect=spread) as used:
        found = _run(name, case, dtype, delta)
    used.assert_called_once()
    loop = _run(name.removesuffix("-exact"), case, torch.float64, delta)
    tolerance = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    assert relative_error(found[0], loop[0]) <= 1e-6
    for one, other in zip(found[1:], loop[1:], strict=True):
        assert relative_error(one, other) <= tolerance


@pytest.mark.parametrize("name", ["ap-exact", "alrp-exact", "rs-exact"])
@pytest.mark.parametrize(
    ("place", "value", "seen"),
    [(0, torch.nan, True), (0, torch.inf, True), (4, -torch.inf, True), (1, torch.nan, True),
     (1, torch.inf, False), (5, torch.nan, False)],
)  # fmt: skip
def test_what_is_not_finite_is_seen(
    fused: ModuleType, name: str, place: int, value: float, seen: bool
) -> None:
    """Positives are the places 0 and 4, rows 2 and 3 are ignored; a positive in them takes part."""
    logits = torch.linspace(-1, 1, 8, device=DEVICE).view(4, 2)
    logits.view(-1)[place] = value
    ignored = torch.tensor([False, False, True, True], device=DEVICE)
    positives, ones = torch.tensor([4, 0], device=DEVICE), torch.ones(2, device=DEVICE)
    logits.requires_grad_()
    found = RankingLoss(name).forward_indexed(logits, positives, ones, ignored, ones)
    assert {bool(value.isnan()) for value in found.values()} == {seen}
    found["loss_rank"].backward()
    assert bool(logits.grad.view(-1)[positives].isnan().all()) is seen


def test_sums_of_two_processes_are_those_of_one(fused: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1000, generator=generator).to(DEVICE)
    positives, places = logits[::100], torch.arange(0, 1000, 100, device=DEVICE)
    parts = [fused.FusedBins(positives, 0.5) for _ in range(3)]
    parts[0].read(logits, places, None)
    parts[1].read(logits[:500], places[:5], None)
    parts[2].read(logits[500:], places[5:] - 500, None)
    together = [a + b for a, b in zip(parts[1].negatives, parts[2].negatives, strict=True)]
    for found, expected in zip(together, parts[0].negatives, strict=True):
        torch.testing.assert_close(found, expected)


def test_logits_of_any_strides(fused: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(300, 3, generator=generator).to(DEVICE)
    positives, qualities = torch.arange(0, 300, 30, device=DEVICE), torch.ones(10, device=DEVICE)
    found = []
    for logits in (wide[:, 1], wide[:, 1].contiguous()):
        logits = logits.detach().requires_grad_()
        RankingLoss("ap-exact").forward_indexed(logits, positives, qualities)[
            "loss_rank"
        ].backward()
        found.append(logits.grad)
    assert torch.equal(*found)


def test_without_working_kernels_pytorch_does_the_same(fused: ModuleType) -> None:
    device = torch.device("cuda", 7)
    with mock.patch.object(fused, "try_out", side_effect=RuntimeError("no C compiler")):
        with pytest.warns(RuntimeWarning, match="do not run on cuda:7 .*no C compiler"):
            assert CAN_FUSE(device) is False
        assert CAN_FUSE(device) is False  # says so once
    assert CAN_FUSE(torch.device("cpu")) is False


def test_kernels_are_tried_with_numbers_that_are_known(fused: ModuleType) -> None:
    fused.try_out(torch.device(DEVICE))
    with (
        mock.patch.object(fused.kernels, "add_copies", mock.MagicMock()),
        pytest.raises(RuntimeError, match="they give"),
    ):
        fused.try_out(torch.device(DEVICE))


def test_more_positives_than_pairs_are_worth_take_the_tree(fused: ModuleType) -> None:
    logits = torch.zeros(1, device=DEVICE)
    assert autograd._form_of(Bins, logits, 1 << 15) is fused.FusedBins
    assert autograd._form_of(Bins, logits, (1 << 15) + 1) is Bins
    assert autograd._form_of(Bins, logits.double(), 1) is Bins
    assert autograd._form_of(Buckets, logits, 1) is Buckets


@pytest.mark.cuda
@pytest.mark.skipif(DEVICE == "cpu", reason="there is no CUDA device")
def test_two_runs_are_equal_in_every_bit(fused: ModuleType) -> None:
    assert CAN_FUSE(torch.device("cuda", 0)) is True
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1_000_000, generator=generator).to(DEVICE)
    positives, qualities = torch.arange(0, 1_000_000, 500, device=DEVICE), torch.rand(2000)
    found = []
    for _ in range(5):
        given = logits.clone().requires_grad_()
        losses = RankingLoss("rs-exact").forward_indexed(given, positives, qualities.to(DEVICE))
        sum(losses.values()).backward()
        found.append(given.grad)
    assert all(torch.equal(each, found[0]) for each in found)


@pytest.mark.cuda
@pytest.mark.skipif(DEVICE == "cpu", reason="there is no CUDA device")
@pytest.mark.parametrize("name", ["ap-exact", "alrp-exact", "rs-exact"])
def test_the_host_waits_for_nothing(fused: ModuleType, name: str) -> None:
    logits = torch.randn(1000, 80, device=DEVICE, requires_grad=True)
    positives, values = torch.arange(0, 80_000, 800, device=DEVICE), torch.rand(100, device=DEVICE)
    ignored = torch.zeros(1000, dtype=torch.bool, device=DEVICE)
    loss = RankingLoss(name)
    for mode in ("default", "error"):  # kernels are compiled in the first
        torch.cuda.set_sync_debug_mode(mode)
        try:
            found = loss.forward_indexed(logits, positives, values, ignored, values)
            sum(found.values()).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_every_kernel_compiles_for_a_gpu(repository: Path) -> None:
    """To machine code, with the arguments that it gets, by a process without the interpreter."""
    environment = {**os.environ, "PYTHONPATH": str(repository / "projects/BucketedRanking")}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-c", COMPILE_ALL]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    source = repository / "projects/BucketedRanking/bucketed_ranking/losses/kernels.py"
    names = re.findall(r"^def ([a-z]\w+)", source.read_text(), re.MULTILINE)
    assert set(done.stdout.split()) == set(names)


COMPILE_ALL = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from bucketed_ranking.losses import RankingLoss, autograd, kernels

TYPES = {torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16",
         torch.bfloat16: "bf16", torch.int64: "i64", torch.bool: "i1"}

def type_of(parameter, value):
    if parameter.annotation_type:
        return parameter.annotation_type
    if isinstance(value, torch.Tensor):
        return "*" + TYPES[value.dtype]
    return "i64" if abs(value) >= 2**31 else "i32"

class Compiled:
    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        return self.compile

    def compile(self, *values, **options):
        names = self.kernel.arg_names
        given = {**dict(zip(names, values)), **options}
        constants, types = {}, {}
        for p in self.kernel.params:
            value = given[p.name]
            one = isinstance(value, int) and value == 1 and not p.do_not_specialize
            if p.is_constexpr or value is None or one:
                constants[p.name], types[p.name] = value, "constexpr"
            else:
                types[p.name] = type_of(p, value)
        source = ASTSource(self.kernel, types, constexprs=constants)
        triton.compile(source, target=GPUTarget("cuda", 80, 32))
        print(self.kernel.__name__)

for name, kernel in list(vars(kernels).items()):
    if isinstance(kernel, triton.JITFunction) and not name.startswith("_"):
        setattr(kernels, name, Compiled(kernel))
autograd._can_fuse = lambda device: True
floats = [p.name for p in kernels.sum_pairs.kernel.params if p.annotation_type == "fp64"]
assert floats == ["delta", "per_unit"]
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    for delta in (0, 0.5):
        for ignored in (None, torch.zeros(100, dtype=torch.bool)):
            logits = torch.randn(100, 2).to(dtype).requires_grad_()
            loss = RankingLoss("rs-exact", delta=delta)
            found = loss.forward_indexed(logits, torch.arange(9), torch.ones(9), ignored)
            sum(found.values()).backward()
"""
