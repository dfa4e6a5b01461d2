"""What processes do in tests of one global ranking: a criterion's call, a detector's step."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from detectron2.modeling import build_model
from detectron2.modeling.proposal_generator import proposal_utils
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from bucketed_ranking.balance import EpochBalance
from bucketed_ranking.criterion import RankingCriterion, RankingResult, positive_rows
from bucketed_ranking.losses import QUALITY_LOSSES, QualityLoss, RankingLoss
from tests.small_detectors import narrow_config, random_batch

# What depends on the batch otherwise: normalisation, which positives have masks, and how many
# negatives fill up extra queries, and which.
_OF_EACH_IMAGE = [
    "MODEL.RESNETS.NORM", "LN",
    "MODEL.FPN.NORM", "LN",
    "MODEL.RANKING.MAX_MASKS", "100000",
    "MODEL.CODETR.MAX_EXTRA_QUERIES", "0",
    "MODEL.RANKING.SCOPE", "global",
]  # fmt: skip


def images(objects: tuple[int, ...]) -> list[dict]:
    """Images of one size with so many objects each: padding depends on the batch, too."""
    return [random_batch((count,), seed)[0] for seed, count in enumerate(objects)]


def one_part(head: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """Those rows of a head's logits and labels, and its positives among them."""
    of_part = torch.isin(head["positives"], rows)
    labels = head["labels"][rows]
    return {
        "logits": head["logits"][rows],
        "labels": labels,
        "positives": positive_rows(labels, head["logits"].shape[1]),
        "pred_boxes": head["pred_boxes"][of_part],
        "target_boxes": head["target_boxes"][of_part],
    }


def call_criterion(
    loss: str, options: dict[str, Any], head: dict[str, Tensor], group: Any = None
) -> tuple[RankingResult, Tensor, Tensor]:
    """The result, all detached, and the gradients of the sum of all losses."""
    criterion, balance = (
        RankingCriterion((QualityLoss if loss in QUALITY_LOSSES else RankingLoss)(loss), **options),
        EpochBalance(2),
    )
    logits, boxes = (head[name].clone().requires_grad_() for name in ("logits", "pred_boxes"))
    given = {**head, "logits": logits, "pred_boxes": boxes}
    if options.get("box_weight"):  # a head that brings two losses, and has averaged one itself
        error = (boxes - head["target_boxes"]).abs().sum(dim=1)
        given["box_losses"] = {"loss_bbox": error, "loss_giou": error.square().sum() / 100}
    result = criterion(**given, group=group)
    if "alrp" in loss:
        result = balance(balance(result))
    sum(weight * value for weight, value in enumerate(result.losses.values(), 1)).backward()
    losses = {name: value.detach() for name, value in result.losses.items()}
    return result._replace(losses=losses), logits.grad, boxes.grad


def criterion_parts(rank: int, cases: list[tuple]) -> list[tuple[RankingResult, Tensor, Tensor]]:
    """:func:`call_criterion` on this process' part of each case."""
    return [
        call_criterion(loss, options, one_part(head, owners[rank]), dist.group.WORLD)
        for loss, options, head, owners in cases
    ]


def step(
    detector: str,
    loss: str,
    dtype: torch.dtype,
    batch: list[dict],
    options: tuple[str, ...] = (),
    parallel: bool = False,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and parameter gradients of a training step; `parallel`: of DistributedDataParallel."""
    torch.manual_seed(0)
    model = build_model(narrow_config(detector, loss, *_OF_EACH_IMAGE, *options)).train().to(dtype)
    wrapped = nn.parallel.DistributedDataParallel(model) if parallel else model
    with EventStorage(), _detectron2_in_float64():
        losses = wrapped(batch)
        sum(losses.values()).backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: value.detach() for name, value in losses.items()}, grads


@contextmanager
def _detectron2_in_float64() -> Iterator[None]:
    """Detectron2 decodes boxes in float32 whatever the model's type, and its NMS needs one type."""
    to_float, nms = Tensor.float, proposal_utils.batched_nms

    def keep_double(tensor: Tensor) -> Tensor:
        return tensor if tensor.dtype == torch.float64 else to_float(tensor)

    def cast_scores(boxes: Tensor, scores: Tensor, *rest: Any) -> Tensor:
        return nms(boxes, scores.to(boxes.dtype), *rest)

    patch_nms = mock.patch.object(proposal_utils, "batched_nms", cast_scores)
    with mock.patch.object(Tensor, "float", keep_double), patch_nms:
        yield


def detector_parts(rank: int, cases: list[tuple]) -> list[tuple[dict, dict]]:
    """:func:`step` of this process' images of each case, which every process is given in parts."""
    return [
        step(detector, loss, dtype, make(parts)[rank], options, parallel=True)
        for detector, loss, dtype, make, parts, options in cases
    ]


def same_image(parts: tuple[tuple[int], ...]) -> list[list[dict]]:
    """One and the same image for every process, by its number of objects."""
    return [images(part) for part in parts]


def images_of(parts: tuple[tuple[int, ...], ...]) -> list[list[dict]]:
    """The images of every process, by their numbers of objects; no two are the same."""
    every = iter(images(tuple(count for part in parts for count in part)))
    return [[next(every) for _ in part] for part in parts]
