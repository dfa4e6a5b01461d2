"""Co-DETR as a whole: what its auxiliary parts do to it, and what they must not do."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from bucketed_ranking.engine.checkpoint import SafeCheckpointer
from bucketed_ranking.errors import BucketRankError
from bucketed_ranking.modeling.codetr.query_head import Predictions
from tests.small_detectors import narrow_config, random_batch

TINY = "co_deformable_detr_tiny"
NO_HEADS = ("MODEL.CODETR.AUXILIARY_HEADS", "[]")
HEADS = {"roi": ("rpn", "roi", "roi_queries"), "atss": ("atss", "atss_queries")}


def build(loss: str, *options: str):
    torch.manual_seed(0)
    return build_model(narrow_config(TINY, loss, *options)).train()


def losses_of(model, batch):
    torch.manual_seed(1)
    with EventStorage():
        return model(batch)


@pytest.mark.parametrize("loss", ["score", "brs"])
@pytest.mark.parametrize("names", [[], ["roi"], ["atss"], ["roi", "atss"]])
def test_any_auxiliary_heads_train_and_are_trained(names, loss):
    model = build(loss, "MODEL.CODETR.AUXILIARY_HEADS", str(names))
    losses = losses_of(model, random_batch())
    groups = {"encoder", "decoder", *(group for name in names for group in HEADS[name])}
    suffixes = ("_cls", "_rank", "_sort", "_bbox", "_giou", "_loc", "_box_reg", "_centerness")
    found = {next(n.removesuffix(s) for s in suffixes if n.endswith(s)) for n in losses}
    assert found == {f"loss_{group}" for group in groups}
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_auxiliary_parts_do_not_change_what_the_queries_predict():
    model, batch = build("brs"), random_batch()
    plain = build("brs", *NO_HEADS)
    own = {k: v for k, v in model.state_dict().items() if not k.startswith("auxiliary.")}
    assert plain.state_dict().keys() == own.keys()
    plain.load_state_dict(own)
    expected = losses_of(plain, batch)
    found = losses_of(model, batch)
    assert len(expected) == 8
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_inference_needs_no_auxiliary_parts(tmp_path):
    model = build("brs").eval()
    SafeCheckpointer(model, str(tmp_path)).save("model")
    plain = build("score", *NO_HEADS).eval()
    SafeCheckpointer(plain).load_all(str(tmp_path / "model.pth"))
    with torch.no_grad():
        (expected,), (found,) = model(random_batch((2,))), plain(random_batch((2,)))
    assert torch.equal(found["instances"].scores, expected["instances"].scores)
    boxes = (each["instances"].pred_boxes.tensor for each in (expected, found))
    assert torch.equal(*boxes)


def test_extra_queries_teach_the_encoder_and_the_decoder():
    model, without = build("score"), build("score", "MODEL.CODETR.MAX_EXTRA_QUERIES", "0")
    assert not any("embeddings" in name for name, _ in without.named_parameters())
    losses = losses_of(model, random_batch())
    names = [name for name in losses if "_queries_" in name]
    assert len(names) == 6
    sum(losses[name] for name in names).backward()
    parts = ("encoder", "decoder_layers.0", "class_branches.0", "box_branches.1")
    for part in parts:
        assert any(p.grad is not None for p in model.head.get_submodule(part).parameters()), part
    assert model.backbone.stem.conv1.weight.grad.any()
    assert model.head.query_embedding.weight.grad is None
    assert model.auxiliary.heads["roi"].roi_heads.box_predictor.bbox_pred.weight.grad is None


def test_all_heads_are_weighted():
    batch = random_batch()
    once = losses_of(build("brs", "MODEL.CODETR.AUXILIARY_LOSS_WEIGHT", "1.0"), batch)
    thrice = losses_of(build("brs", "MODEL.CODETR.AUXILIARY_LOSS_WEIGHT", "3.0"), batch)
    for name, value in once.items():
        of_head = name.startswith(("loss_rpn", "loss_roi_", "loss_atss_")) and "queries" not in name
        torch.testing.assert_close(thrice[name], value * (3 if of_head else 1))


def test_roi_and_atss_see_the_features_of_their_candidates():
    model = build("brs")
    names = model.auxiliary.names
    assert names == ["p3", "p4", "p5", "p6"]
    torch.manual_seed(0)
    features = {
        name: torch.randn(1, 32, 2 ** (4 - i), 2 ** (4 - i)) for i, name in enumerate(names)
    }
    rows = torch.tensor([[0, 17, 256 + 5]])
    found = model.auxiliary.heads["atss"].content(features, torch.zeros(1, 3, 4), rows)
    expected = [features["p3"][0, :, 0, 0], features["p3"][0, :, 1, 1], features["p4"][0, :, 0, 5]]
    torch.testing.assert_close(found[0], torch.stack(expected))
    flat = {
        name: torch.full_like(each, float(i)) for i, (name, each) in enumerate(features.items())
    }
    boxes = torch.tensor([[[8.0, 8, 40, 40], [0, 0, 120, 120]]])
    pooled = model.auxiliary.heads["roi"].content(flat, boxes, rows[:, :2])
    torch.testing.assert_close(pooled, torch.zeros(1, 2, 32))  # both below 224: stride 8


def test_detections_are_the_best_of_all_queries_and_classes():
    model = build("brs", "TEST.DETECTIONS_PER_IMAGE", "3")
    logits = torch.full((2, 1, 2, 4), -9.0)
    logits[1, 0] = torch.tensor([[0.0, 3.0, -1.0, -1.0], [-2.0, -2.0, 2.0, -2.0]])
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.25, 0.5, 0.1, 0.1]]).expand(2, 1, 2, 4)
    (found,) = model.detections(Predictions(logits, boxes), [(100, 200)])
    assert found.pred_classes.tolist() == [1, 2, 0]
    torch.testing.assert_close(found.scores, torch.tensor([3.0, 2.0, 0.0]).sigmoid())
    first, second = [80.0, 30, 120, 70], [40.0, 45, 60, 55]
    torch.testing.assert_close(found.pred_boxes.tensor, torch.tensor([first, second, first]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("MODEL.CODETR.AUXILIARY_HEADS", "['fcos']"), "has 'fcos'; there are roi, atss"),
        (("MODEL.CODETR.HIDDEN_DIM", "48"), "HIDDEN_DIM is 48; it must be a multiple of 32"),
        (("MODEL.CODETR.NUM_LEVELS", "2"), "NUM_LEVELS is 2, but the backbone has 3 features"),
    ],
)
def test_what_cannot_be_built_is_told(options, message):
    with pytest.raises(BucketRankError, match=message):
        build("brs", *options)


def test_more_levels_than_the_backbone_has():
    model = build("brs", "MODEL.CODETR.NUM_LEVELS", "4", "MODEL.CODETR.AUXILIARY_HEADS", "[]")
    assert model.neck.extra_convs[0].weight.shape[-2:] == (3, 3)
    losses = losses_of(model, random_batch())
    assert all(value.isfinite() for value in losses.values())
