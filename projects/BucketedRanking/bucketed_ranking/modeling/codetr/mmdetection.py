"""Co-Deformable-DETR's weights under the names and in the layout of its published checkpoints,
which are MMDetection's."""

import itertools
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

_HEADS = {"roi": 0, "atss": 1}

# From our names to theirs; each applies to what those before it have left.
_NAMES: list[tuple[str, str | Callable[[re.Match], str]]] = [
    (r"^backbone\.stem\.", "backbone."),
    (r"^backbone\.res(\d)", lambda match: f"backbone.layer{int(match[1]) - 1}"),
    (r"^(backbone\..*)shortcut\.norm", r"\1downsample.1"),
    (r"^(backbone\..*)shortcut", r"\1downsample.0"),
    (r"^(backbone\..*)conv(\d)\.norm", r"\1bn\2"),
    (r"^(neck\..*)norm", r"\1gn"),
    (r"^(neck\..*\d\.)weight", r"\1conv.weight"),
    (r"^head\.query_embedding", "query_head.query_embedding"),
    (r"^head\.class_branches", "query_head.cls_branches"),
    (r"^head\.box_branches", "query_head.reg_branches"),
    (r"^head\.memory_linear", "head.enc_output"),
    (r"^head\.memory_norm", "head.enc_output_norm"),
    (r"^head\.box_embedding\.linear", "head.pos_trans"),
    (r"^head\.box_embedding\.norm", "head.pos_trans_norm"),
    (r"^head\.encoder\.level_embeds", "head.level_embeds"),
    (r"^head\.decoder_layers", "head.decoder.layers"),
    (r"^(head\..*)self_attention", r"\1attentions.0.attn"),
    (r"^(head\..*)cross_attention", r"\1attentions.1"),
    (r"^(head\..*)attention\.", r"\1attentions.0."),
    (r"^(head\..*)feedforward\.0", r"\1ffns.0.layers.0.0"),
    (r"^(head\..*)feedforward\.2", r"\1ffns.0.layers.1"),
    (r"^(head\..*layers.*)norm(\d)", lambda match: f"{match[1]}norms.{int(match[2]) - 1}"),
    (r"^auxiliary\.downsample", "query_head.downsample"),
    (r"^auxiliary\.embeddings\.(\w+)\.(.*)\.", lambda match: _of_embedding(match[1], match[2])),
    (r"^auxiliary\.embeddings\.(\w+)\.offset", lambda match: _OFFSETS[_HEADS[match[1]]]),
    (r"^auxiliary\.heads\.roi\.proposal_generator\.rpn_head\.conv", "rpn_head.rpn_conv"),
    (r"^auxiliary\.heads\.roi\..*objectness_logits", "rpn_head.rpn_cls"),
    (r"^auxiliary\.heads\.roi\..*anchor_deltas", "rpn_head.rpn_reg"),
    (r"^auxiliary\.heads\.roi\..*box_head\.fc(\d)",
     lambda match: f"roi_head.0.bbox_head.shared_fcs.{int(match[1]) - 1}"),
    (r"^auxiliary\.heads\.roi\..*cls_score", "roi_head.0.bbox_head.fc_cls"),
    (r"^auxiliary\.heads\.roi\..*bbox_pred", "roi_head.0.bbox_head.fc_reg"),
    (r"^auxiliary\.heads\.atss\.atss\.head\.", "bbox_head.0."),
    (r"^(bbox_head.*)(cls|bbox)_subnet\.(\d+)", lambda match: _of_subnet(*match.groups())),
    (r"^(bbox_head.*)cls_score", r"\1atss_cls"),
    (r"^(bbox_head.*)bbox_pred", r"\1atss_reg"),
    (r"^(bbox_head.*)quality", r"\1atss_centerness"),
    (r"^(bbox_head.*)scales$", r"\1scales.*.scale"),
    (r"^head\.", "query_head.transformer."),
]  # fmt: skip

_OFFSET = "query_head.transformer.head_pos_embed.weight"
# What is one tensor here and several there, or the other way round: by a name of its own.
_OFFSETS = [f"{_OFFSET}[{index}]" for index in _HEADS.values()]
_SCALES = "bbox_head.0.scales.*.scale"

_COUNTER = ".num_batches_tracked"
_ATSS_BIAS = re.compile(r"bbox_head\.0\.(cls|reg)_convs\.\d+\.conv\.bias")
_OF_ANCHORS = ("rpn_head.rpn_cls.", "rpn_head.rpn_reg.")

MATCHED, OTHER_SHAPE = "matched", "of another shape"
UNMATCHED, MISSING = "unmatched", "missing"
NOT_NEEDED = "not needed"


class Tensors(NamedTuple):
    """What became of a tensor: its names there and here ("" for none), its status, and why."""

    mmdetection: str
    detectron2: str
    status: str
    """MATCHED; OTHER_SHAPE than the detector's; UNMATCHED, of the file alone; MISSING, of the
    detector alone; NOT_NEEDED, which one side has, and the other does well without."""
    detail: str = ""


class Conversion(NamedTuple):
    weights: dict[str, Tensor]
    """What is matched, by its new names."""
    report: list[Tensors]


def is_score_based(weights: Mapping[str, Tensor]) -> bool:
    """Whether the ATSS head has a centerness branch, in either layout: none does with ranking."""
    return any("atss_centerness" in name or ".head.quality." in name for name in weights)


def to_detectron2(
    published: Mapping[str, Tensor], model: Mapping[str, Tensor], anchors: tuple[int, int]
) -> Conversion:
    """Weights by our names.

    Args:
        published: a state dict of MMDetection.
        model: the state dict of the detector that is to have them.
        anchors: sizes and aspect ratios of the RPN's anchors, how many at a location.
    """
    given = _one_to_one(published)
    report, weights = [], {}
    for ours, value in model.items():
        theirs = mmdetection_name(ours)
        found = given.pop(theirs, None)
        if found is None and _ATSS_BIAS.fullmatch(theirs):
            weights[ours] = torch.zeros_like(value)
            report.append(Tensors("", ours, NOT_NEEDED, "a bias, which is 0 there"))
            continue
        row = _compare(theirs, ours, found, value)
        if row.status == MATCHED:
            of_anchors = theirs.startswith(_OF_ANCHORS)
            weights[ours] = _swapped(found, *reversed(anchors)) if of_anchors else found
        report.append(row)
    for theirs, value in given.items():
        counter = theirs.endswith(_COUNTER)
        why = "steps of a frozen norm" if counter else str(tuple(value.shape))
        report.append(Tensors(theirs, "", NOT_NEEDED if counter else UNMATCHED, why))
    return Conversion(weights, report)


def to_mmdetection(
    own: Mapping[str, Tensor], model: Mapping[str, Tensor], anchors: tuple[int, int]
) -> Conversion:
    """The reverse of :func:`to_detectron2`, for weights `own` by our names."""
    given = dict(own)
    report, weights = [], {}
    for ours, value in model.items():
        theirs, found = mmdetection_name(ours), given.pop(ours, None)
        if _ATSS_BIAS.fullmatch(theirs):
            lost = found is not None and bool(found.any())
            why = "a bias, which MMDetection's has not" if lost else "a bias of 0"
            report.append(Tensors("", ours, UNMATCHED if lost else NOT_NEEDED, why))
            continue
        row = _compare(theirs, ours, found, value)
        if row.status == MATCHED:
            of_anchors = theirs.startswith(_OF_ANCHORS)
            weights[theirs] = _swapped(found, *anchors) if of_anchors else found
        report.append(row)
    report += [Tensors("", k, UNMATCHED, str(tuple(v.shape))) for k, v in given.items()]
    return Conversion(_as_published(weights), report)


def mmdetection_name(name: str) -> str:
    """What a tensor of ours is called there; several tensors there have a "*" or an index."""
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _of_embedding(head: str, part: str) -> str:
    names = {"boxes.linear": "aux_pos_trans", "boxes.norm": "aux_pos_trans_norm",
             "feature_linear": "pos_feats_trans", "feature_norm": "pos_feats_norm"}  # fmt: skip
    return f"query_head.transformer.{names[part]}.{_HEADS[head]}."


def _of_subnet(prefix: str, kind: str, index: str) -> str:
    """A subnet is convolution, norm and ReLU in turns."""
    layer, part = divmod(int(index), 3)
    branch = "cls_convs" if kind == "cls" else "reg_convs"
    return f"{prefix}{branch}.{layer}.{('conv', 'gn')[part]}"


def _compare(theirs: str, ours: str, found: Tensor | None, wanted: Tensor) -> Tensors:
    if found is None:
        return Tensors(theirs, ours, MISSING, str(tuple(wanted.shape)))
    if found.shape != wanted.shape:
        shapes = f"{tuple(found.shape)} in the file, {tuple(wanted.shape)} in the detector"
        return Tensors(theirs, ours, OTHER_SHAPE, shapes)
    return Tensors(theirs, ours, MATCHED)


def _swapped(rows: Tensor, outer: int, inner: int) -> Tensor:
    """Rows [outer x inner x K, ...] in the order inner x outer x K: there, anchors of a location go
    by aspect ratio and then by size, here by size first."""
    return rows.unflatten(0, (outer, inner, -1)).transpose(0, 1).flatten(0, 2)


def _one_to_one(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors so that each is one of ours."""
    given = dict(published)
    if given.get(_OFFSET, torch.zeros(0)).shape == (len(_OFFSETS), 1):
        given |= zip(_OFFSETS, given.pop(_OFFSET), strict=True)
    names = (_SCALES.replace("*", str(level)) for level in itertools.count())
    scales = list(itertools.takewhile(lambda name: name in given and not given[name].ndim, names))
    if scales:
        given[_SCALES] = torch.stack([given.pop(name) for name in scales])
    return given


def _as_published(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of :func:`_one_to_one`, with counters of norms, which stand at 0 while frozen."""
    given = dict(weights)
    offsets = [given.pop(name) for name in _OFFSETS if name in given]
    if offsets:
        given[_OFFSET] = torch.stack(offsets)
    for index, scale in enumerate(given.pop(_SCALES, ())):
        given[_SCALES.replace("*", str(index))] = scale
    for name in [name for name in given if name.endswith(".running_var")]:
        given.setdefault(name.removesuffix(".running_var") + _COUNTER, torch.tensor(0))
    return given
