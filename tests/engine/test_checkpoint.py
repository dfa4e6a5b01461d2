"""Checkpoints: other losses' weights load, zoo formats load, code in a file does not run."""

import os
import pickle

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from torchvision.models import resnet18

from bucketed_ranking.balance import EpochBalance
from bucketed_ranking.engine.checkpoint import SafeCheckpointer, adapt_background_column
from bucketed_ranking.engine.setup import load_config
from bucketed_ranking.errors import BucketRankError
from tests.small_detectors import ALL_SCORES, DETECTORS, narrow_config, random_batch

PREDICTOR = "roi_heads.box_predictor.cls_score"


def build(detector: str, loss: str, seed: int = 0):
    torch.manual_seed(seed)
    return build_model(narrow_config(detector, loss, *ALL_SCORES))


@pytest.mark.parametrize(
    "losses",
    [("score", "brs"), ("brs", "score"), ("bap", "rs"), ("brs", "alrp"), ("alrp-exact", "score")],
)
@pytest.mark.parametrize("detector", DETECTORS)
def test_weights_of_one_loss_load_under_another(detector, losses, tmp_path):
    source, target = build(detector, losses[0]), build(detector, losses[1], seed=1)
    SafeCheckpointer(source, str(tmp_path)).save("model")
    SafeCheckpointer(target).load_all(str(tmp_path / "model.pth"))
    expected = source.state_dict()
    for name, value in target.state_dict().items():
        if "head.quality" in name and name not in expected:
            assert not value.any(), "a branch that leaves the order of the scores alone"
        elif "balance." in name and name not in expected:
            assert torch.equal(value, getattr(EpochBalance(), name.rpartition(".")[2])), "a start"
        elif "box_predictor" not in name or ".cls_score." not in name:
            assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("loss", ["score", "brs"])
@pytest.mark.parametrize("detector", DETECTORS)
def test_a_saved_detector_finds_what_it_found(detector, loss, tmp_path):
    source, target = build(detector, loss).eval(), build(detector, loss, seed=1).eval()
    SafeCheckpointer(source, str(tmp_path)).save("model")
    SafeCheckpointer(target).load_all(str(tmp_path / "model.pth"))
    with torch.no_grad():
        before, after = (model(random_batch())[0]["instances"] for model in (source, target))
    assert len(before) > 0
    assert torch.equal(after.pred_boxes.tensor, before.pred_boxes.tensor)
    assert torch.equal(after.scores, before.scores)


def test_dropping_the_background_column_keeps_the_log_odds():
    weights = {f"{PREDICTOR}.bias": torch.tensor([1.0, 2.0, 0.5])}
    adapt_background_column(weights, {f"{PREDICTOR}.bias": torch.zeros(2)})
    assert weights[f"{PREDICTOR}.bias"].tolist() == [0.5, 1.5]
    softmax = torch.tensor([1.0, 2.0, 0.5]).softmax(0)
    pairwise = softmax[:2] / (softmax[:2] + softmax[2])
    torch.testing.assert_close(weights[f"{PREDICTOR}.bias"].sigmoid(), pairwise)


def test_adding_the_background_column_keeps_them_too():
    weights = {f"{PREDICTOR}.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
    adapt_background_column(weights, {f"{PREDICTOR}.weight": torch.zeros(3, 2)})
    assert weights[f"{PREDICTOR}.weight"].tolist() == [[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]]


def test_classes_of_another_data_set_are_refused(tmp_path):
    SafeCheckpointer(build("retinanet_tiny", "brs"), str(tmp_path)).save("model")
    cfg = narrow_config("retinanet_tiny", "brs")
    cfg.MODEL.RETINANET.NUM_CLASSES = 7
    with pytest.raises(BucketRankError, match=r"of another detector.*head\.cls_score"):
        SafeCheckpointer(build_model(cfg)).load_all(str(tmp_path / "model.pth"))


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil-was-here",)


@pytest.mark.parametrize("ending", ["pth", "pkl"])
def test_a_checkpoint_with_code_is_refused_and_not_run(ending, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"model.{ending}"
    if ending == "pth":
        torch.save({"model": {}, "extra": Evil()}, path)
    else:
        path.write_bytes(pickle.dumps({"model": {}, "__author__": "x", "extra": Evil()}))
    with pytest.raises(BucketRankError, match="more than tensors"):
        SafeCheckpointer(build("retinanet_tiny", "brs")).load(str(path))
    assert not (tmp_path / "evil-was-here").exists()


def test_a_missing_or_damaged_checkpoint_is_told(tmp_path):
    model = build("retinanet_tiny", "brs")
    with pytest.raises(BucketRankError, match=r"no weights at .*nothing\.pth"):
        SafeCheckpointer(model).load(str(tmp_path / "nothing.pth"))
    path = tmp_path / "torn.pth"
    torch.save(model.state_dict(), path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(BucketRankError, match=r"torn\.pth cannot be read"):
        SafeCheckpointer(model).load(str(path))


@pytest.fixture
def resnet18_fpn():
    options = ["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64",
               "MODEL.RESNETS.STRIDE_IN_1X1", "False"]  # fmt: skip
    cfg = load_config("retinanet_R_50_FPN_1x", loss="brs", device="cpu", options=options)
    return build_model(cfg)


def test_torchvision_backbone_weights_load(resnet18_fpn, tmp_path):
    weights = resnet18(weights=None).state_dict()
    torch.save(weights, tmp_path / "resnet18.pth")
    checkpointer = SafeCheckpointer(resnet18_fpn)
    checkpointer.load(str(tmp_path / "resnet18.pth"))
    missing = [name for name in checkpointer.unfitting if "bottom_up" in name]
    assert not missing
    loaded = resnet18_fpn.state_dict()
    pairs = {
        "stem.conv1.weight": "conv1.weight",
        "stem.conv1.norm.running_mean": "bn1.running_mean",
        "res3.0.shortcut.weight": "layer2.0.downsample.0.weight",
        "res3.0.shortcut.norm.weight": "layer2.0.downsample.1.weight",
        "res5.1.conv2.norm.bias": "layer4.1.bn2.bias",
    }
    for ours, theirs in pairs.items():
        assert torch.equal(loaded[f"backbone.bottom_up.{ours}"], weights[theirs]), ours


def test_the_model_zoos_pickle_format_loads(resnet18_fpn, tmp_path):
    # As detectron2://ImageNetPretrained/MSRA/R-50.pkl: Caffe2 names, arrays, a bare dictionary.
    rng = np.random.default_rng(0)
    arrays = {
        "conv1_w": rng.normal(size=(64, 3, 7, 7)).astype(np.float32),
        "res2_0_branch2a_w": rng.normal(size=(64, 64, 3, 3)).astype(np.float32),
        "res2_0_branch2a_w_momentum": np.zeros(1, np.float32),
    }
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps({"blobs": arrays}))
    SafeCheckpointer(resnet18_fpn).load(str(tmp_path / "zoo.pkl"))
    loaded = resnet18_fpn.state_dict()["backbone.bottom_up.stem.conv1.weight"]
    assert np.array_equal(loaded.numpy(), arrays["conv1_w"])


def test_detectron2_addresses_reach_the_model_zoo(monkeypatch, resnet18_fpn, tmp_path):
    """`detectron2://` goes to Detectron2's own download; only the download is replaced."""
    from iopath.common import file_io

    asked = []

    def download(url, directory, **kwargs):
        asked.append(url)
        path = tmp_path / "R-50.pkl"
        path.write_bytes(pickle.dumps({"blobs": {"conv1_w": np.ones((64, 3, 7, 7), np.float32)}}))
        return str(path)

    monkeypatch.setattr(file_io, "download", download)
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    address = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
    SafeCheckpointer(resnet18_fpn).load(address)
    assert asked
    assert asked[0].endswith("/detectron2/ImageNetPretrained/MSRA/R-50.pkl")
    assert (resnet18_fpn.state_dict()["backbone.bottom_up.stem.conv1.weight"] == 1).all()


@pytest.mark.parametrize("ending", ["pth", "pkl"])
@pytest.mark.parametrize(
    "content",
    [b"", b"hello weights\n", bytes(range(256)), [1, 2], 3, None, "text", {"a": 1}, {"model": [1]}],
    ids=str,
)
def test_what_is_no_state_dict_is_told(tmp_path, content, ending):
    path = tmp_path / f"weights.{ending}"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif ending == "pth":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(BucketRankError, match=r"weights\.p\w\w (were not|cannot|are no)"):
        SafeCheckpointer(build("retinanet_tiny", "brs")).load(str(path))
