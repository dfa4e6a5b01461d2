"""Published weights in this layout and back: every name and shape, and what the model computes."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from torchvision.models import resnet18, resnet50

from bucketed_ranking.engine.setup import load_config, set_num_classes
from bucketed_ranking.modeling.codetr import mmdetection
from tests.published_codetr import Published, Sizes, published_weights

SMALL = Sizes(32, 48, 2, 4, 2, 10, 5, 16)
ANCHORS = (3, 3)
# The detector of SMALL with a ResNet-18.
OPTIONS = [
    "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64",
    "MODEL.CODETR.HIDDEN_DIM", "32", "MODEL.CODETR.FEEDFORWARD_DIM", "48",
    "MODEL.CODETR.ENCODER_LAYERS", "2", "MODEL.CODETR.DECODER_LAYERS", "2",
    "MODEL.CODETR.NUM_HEADS", "4", "MODEL.CODETR.NUM_POINTS", "2",
    "MODEL.CODETR.NUM_QUERIES", "10", "MODEL.ROI_BOX_HEAD.FC_DIM", "16",
    "INPUT.FORMAT", "RGB", "TEST.DETECTIONS_PER_IMAGE", "20",
]  # fmt: skip


def build(*options, loss="score", classes=5):
    cfg = load_config("co_deformable_detr_R_50_1x", loss=loss, options=options, device="cpu")
    set_num_classes(cfg, classes)
    return build_model(cfg).eval()


def statuses(report):
    found = {}
    for row in report:
        found.setdefault(row.status, []).append(row.mmdetection or row.detectron2)
    return found


def check_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


def test_all_published_names_and_shapes_find_their_places_and_come_back():
    published = published_weights(Sizes(), resnet50(weights=None))
    model = build(classes=80).state_dict()
    converted, report = mmdetection.to_detectron2(published, model, ANCHORS)
    assert {name: v.shape for name, v in converted.items()} == {
        k: v.shape for k, v in model.items()
    }
    found = statuses(report)
    assert found.keys() == {mmdetection.MATCHED, mmdetection.NOT_NEEDED}
    others = found[mmdetection.NOT_NEEDED]
    assert len(others) == 53 + 2, "counters of the backbone's norms, and two biases of ours"
    again, report = mmdetection.to_mmdetection(converted, model, ANCHORS)
    check_equal(again, published)
    assert statuses(report).keys() == {mmdetection.MATCHED, mmdetection.NOT_NEEDED}


@pytest.fixture(scope="module")
def both():
    """The converted detector, and the published one."""
    weights = published_weights(SMALL, resnet18(weights=None))
    model = build(*OPTIONS)
    converted, _ = mmdetection.to_detectron2(weights, model.state_dict(), ANCHORS)
    model.load_state_dict(converted)
    return model, Published(weights, SMALL, resnet18(weights=None))


@pytest.fixture(scope="module")
def picture():
    """A picture of whole strides, which need no padding, and as its detector sees it."""
    image = torch.randint(0, 256, (3, 128, 192), generator=torch.Generator().manual_seed(0)).float()
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    return image, ((image - mean.view(3, 1, 1)) / std.view(3, 1, 1))[None]


@torch.no_grad()
def test_the_converted_detector_finds_what_the_published_one_finds(both, picture):
    model, published = both
    (found,) = model([{"image": picture[0]}])
    found = found["instances"]
    layers = published.decode(published.encode(published.neck(picture[1])))
    logits, boxes = layers[-1]
    scores, order = logits.sigmoid().flatten().topk(20)
    torch.testing.assert_close(found.scores, scores)
    assert torch.equal(found.pred_classes, order % 5)
    x, y, width, height = boxes[order // 5].unbind(1)
    corners = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 1)
    expected = (corners * torch.tensor([192.0, 128, 192, 128])).clamp(min=0)
    expected = expected.minimum(torch.tensor([192.0, 128, 192, 128]))
    torch.testing.assert_close(found.pred_boxes.tensor, expected, rtol=1e-4, atol=1e-3)
    assert scores.std() > 0.01
    assert expected.std(dim=0).min() > 1, "the queries differ"


@torch.no_grad()
def test_so_do_its_auxiliary_heads(both, picture):
    model, published = both
    images = model.preprocess_image([{"image": picture[0]}])
    own = model.neck([model.backbone(images.tensor)[name] for name in model.head_in_features])
    memory = model.head.encode(own, images.image_sizes, images.tensor.shape[-2:])
    features = model.auxiliary.features(memory.levels.maps(memory.tokens))
    expected = published.auxiliary_maps(published.encode(published.neck(picture[1])))
    for found, each in zip(features.values(), expected, strict=True):
        torch.testing.assert_close(found, each, rtol=1e-4, atol=1e-4)
    roi, atss = model.auxiliary.heads["roi"], model.auxiliary.heads["atss"].atss

    rpn = roi.proposal_generator
    anchors = rpn.anchor_generator(expected)
    logits, deltas = rpn.rpn_head(expected)
    flat = [each.permute(0, 2, 3, 1).flatten(1) for each in logits]
    deltas = [
        each.view(1, 9, 4, *each.shape[-2:]).permute(0, 3, 4, 1, 2).flatten(1, 3) for each in deltas
    ]
    boxes = torch.cat(rpn._decode_proposals(anchors, deltas), dim=1)[0]
    scores = torch.cat(flat, dim=1)[0]
    their_scores, their_boxes = published.rpn(expected)
    by_size = their_scores.view(-1, 3, 3).transpose(1, 2).flatten()
    torch.testing.assert_close(scores, by_size)
    by_size = their_boxes.view(-1, 3, 3, 4).transpose(1, 2).reshape(-1, 4)
    torch.testing.assert_close(boxes, by_size, rtol=1e-4, atol=1e-2)

    for found, each in zip(zip(*atss.head(expected), strict=True), published.atss(expected),
                           strict=True):  # fmt: skip
        for one, other in zip(found, each, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)

    regions = [Boxes(torch.tensor([[8.0, 8, 60, 70], [0, 0, 120, 90]]))]
    pooled = roi.roi_heads.box_pooler(expected[:4], regions)
    found = roi.roi_heads.box_predictor(roi.roi_heads.box_head(pooled))
    for one, other in zip(found, published.roi(pooled), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)

    torch.manual_seed(0)
    given = torch.rand(4, 4) * 0.8 + 0.1, torch.randn(4, SMALL.dim)
    for index, name in enumerate(("roi", "atss")):
        found = model.auxiliary.embeddings[name](*(each[None] for each in given))
        for one, other in zip(found, published.extra_queries(index, *given), strict=True):
            torch.testing.assert_close(one[0], other, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_reported_and_left_out():
    published = published_weights(SMALL, resnet18(weights=None))
    other_head = {name: v for name, v in published.items() if "centerness" not in name}
    other_head["query_head.more"] = torch.zeros(2, 3)
    other_head["query_head.transformer.head_pos_embed.weight"] = torch.tensor(1.0)
    other_head["bbox_head.0.scales.2.scale"] = torch.ones(3)
    model = build(*OPTIONS, classes=7).state_dict()
    converted, report = mmdetection.to_detectron2(other_head, model, ANCHORS)
    found = statuses(report)
    offset = "query_head.transformer.head_pos_embed.weight"
    scales = [f"bbox_head.0.scales.{level}.scale" for level in (2, 3, 4)]
    assert found[mmdetection.UNMATCHED] == [offset, *scales, "query_head.more"]
    assert sorted(found[mmdetection.MISSING]) == [
        *[f"bbox_head.0.atss_centerness.{n}" for n in ("bias", "weight")],
        *[f"{offset}[{row}]" for row in (0, 1)],
    ]
    wrong = found[mmdetection.OTHER_SHAPE]
    assert len(wrong) == 2 * (3 + 1 + 2) + 1, "class branches, ATSS, classes and boxes; two scales"
    assert "head.class_branches.0.bias" not in converted
    row = next(row for row in report if row.detectron2 == "head.class_branches.0.bias")
    assert row.detail == "(5,) in the file, (7,) in the detector"


def test_a_bias_that_mmdetection_has_not_is_told():
    model = build(*OPTIONS)
    with torch.no_grad():
        model.auxiliary.heads["atss"].atss.head.cls_subnet[0].bias.fill_(0.5)
    weights = model.state_dict()
    found, report = mmdetection.to_mmdetection(weights, weights, ANCHORS)
    assert statuses(report)[mmdetection.UNMATCHED] == [
        "auxiliary.heads.atss.atss.head.cls_subnet.0.bias"
    ]
    assert not any(name.endswith("convs.0.conv.bias") for name in found)


def test_a_ranking_detectors_weights_fit_too():
    """No centerness, no background column; and Swin's names are everywhere the same."""
    model = build(*OPTIONS, loss="brs").state_dict()
    assert not mmdetection.is_score_based(model)
    published, report = mmdetection.to_mmdetection(model, model, ANCHORS)
    assert not mmdetection.is_score_based(published)
    assert mmdetection.UNMATCHED not in statuses(report)
    assert published["roi_head.0.bbox_head.fc_cls.weight"].shape == (5, 16)
    check_equal(mmdetection.to_detectron2(published, model, ANCHORS).weights, model)
    name = "backbone.layers.1.blocks.0.norm1.weight"
    assert mmdetection.mmdetection_name(name) == name
