"""Run the public implementations of the losses on random cases, and write what comes out.

    python make_public.py AP_LOSS ALRP_LOSS RANK_SORT_LOSS BUCKETED_LOSSES

Each argument is the file named in SOURCES, of a checkout of that commit. The files run on the CPU:
``.cuda()`` is made to return the tensor itself, and what they import of their frameworks is
replaced by nothing, as the losses do not use it. They run in float64, but for the bucketed losses,
which know float32 alone. public.json beside this script holds the result.
"""

import json
import sys
import types
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

SOURCES = {
    "cccorn/AP-loss": (
        "10092a1ff261d93aeca9fcf52bfa1ed206442596", "lib/model/aploss.py",
    ),
    "kemaloksuz/aLRPLoss": (
        "2cfaa8ec3150692cca8b085221f1bd8c8c78db8e", "mmdet/models/losses/alrp_loss.py",
    ),
    "kemaloksuz/RankSortLoss": (
        "b41f64df70b1f8e3260e5c04015e0c7b59b339d9", "mmdet/models/losses/ranking_losses.py",
    ),
    "blisgard/BucketedRankingBasedLosses": (
        "9ba3b0e458d9ece08ab41e874333d761d67c4740", "mmdet/models/losses/ranking_losses.py",
    ),
}  # fmt: skip
SEED = 2026
CASES = {"start": 0.0, "trained": -1.5, "few": -3.0}
POSITIVES, NEGATIVES = 8, 30


def load(path: str) -> dict:
    """The names that a file defines."""
    builder = types.ModuleType("package.builder")
    builder.LOSSES = types.SimpleNamespace(register_module=lambda: lambda loss: loss)
    parents = {name: mock.MagicMock(__path__=[]) for name in ("package", "package.losses")}
    others = {name: mock.MagicMock() for name in ("package.util", "package.util.calc_iou")}
    names = {"__name__": "package.losses.file", "__package__": "package.losses"}
    with mock.patch.dict(sys.modules, {**parents, **others, "package.builder": builder}):
        exec(compile(Path(path).read_text(), path, "exec"), names)
    return names


def random_cases() -> dict[str, dict[str, Tensor]]:
    """Logits without ties, targets (qualities of positives, 0) and box losses in 0..2."""
    generator = torch.Generator().manual_seed(SEED)
    cases = {}
    for name, level in CASES.items():
        logits = torch.randn(POSITIVES + NEGATIVES, generator=generator)
        targets = torch.zeros_like(logits)
        places = torch.randperm(len(logits), generator=generator)[:POSITIVES]
        targets[places] = torch.rand(POSITIVES, generator=generator).clamp(min=0.05)
        logits[targets == 0] += level
        boxes = 2 * torch.rand(POSITIVES, generator=generator)
        cases[name] = {"logits": logits, "targets": targets, "box_losses": boxes}
    return cases


def record(losses: tuple[Tensor, ...], logits: Tensor, **more: Tensor) -> dict:
    """Losses and the gradient of their sum."""
    sum(losses).sum().backward()
    gradients = {"grad": logits.grad, **{f"{name}_grad": each.grad for name, each in more.items()}}
    losses = {"losses": torch.stack([loss.reshape(()) for loss in losses])}
    return {name: each.tolist() for name, each in {**losses, **gradients}.items()}


def main(ap_file: str, alrp_file: str, rs_file: str, bucketed_file: str) -> None:
    torch.Tensor.cuda = lambda self, *args, **options: self
    ap, rs, bucketed = load(ap_file), load(rs_file), load(bucketed_file)
    alrp = load(alrp_file)
    cases, outputs = random_cases(), []
    for name, single in cases.items():
        case = {key: value.double() for key, value in single.items()}

        def add(source: str, loss: str, delta: float, result: dict, name: str = name) -> None:
            outputs.append({"source": source, "loss": loss, "delta": delta, "case": name, **result})

        torch.set_default_dtype(torch.float64)
        labels = (case["targets"] > 0).double()
        grad, loss = ap["AP_loss"](case["logits"], labels)
        result = {"losses": loss.tolist(), "grad": grad.tolist()}
        add("cccorn/AP-loss", "ap", 1.0, result)
        for delta in (1.0, 0.5):
            logits = case["logits"].clone().requires_grad_()
            boxes = case["box_losses"].clone().requires_grad_()
            loss, rank, _ = alrp["aLRPLoss"].apply(logits, labels, boxes, delta)
            descending = logits.detach()[labels == 1].argsort(descending=True)
            localisation = (boxes[descending].cumsum(0) / rank.detach()[descending]).mean()
            result = record((loss, localisation), logits, box=boxes)
            add("kemaloksuz/aLRPLoss", "alrp", delta, result)
        for delta in (0.5, 0.0):
            logits = case["logits"].clone().requires_grad_()
            result = record(rs["RankSort"].apply(logits, case["targets"], delta), logits)
            add("kemaloksuz/RankSortLoss", "rs", delta, result)
        torch.set_default_dtype(torch.float32)
        for loss, delta in (("brs", 0.5), ("brs", 0.0), ("bap", 1.0), ("bap", 0.0)):
            logits = single["logits"].clone().requires_grad_()
            function = bucketed["BucketedRankSort" if loss == "brs" else "BucketedAPLoss"]
            found = function.apply(logits, single["targets"], delta)
            losses = found if loss == "brs" else (found,)
            source = "blisgard/BucketedRankingBasedLosses"
            add(source, loss, delta, record(losses, logits))
    content = {
        "made_by": "make_public.py",
        "sources": {name: {"commit": s[0], "file": s[1]} for name, s in SOURCES.items()},
        "seed": SEED,
        "cases": {name: {k: v.tolist() for k, v in case.items()} for name, case in cases.items()},
    }
    lines = ",\n".join(map(json.dumps, outputs))
    text = json.dumps(content).removesuffix("}") + f', "outputs": [\n{lines}\n]}}\n'
    Path(__file__).with_name("public.json").write_text(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
