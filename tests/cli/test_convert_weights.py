"""`bucketrank convert-weights`: the files, the report, and what it refuses."""

import json
import re
from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18
from typer.testing import CliRunner, Result

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from detectron2.modeling import build_model

from bucketed_ranking.engine.checkpoint import SafeCheckpointer
from bucketed_ranking.engine.setup import load_config
from bucketed_ranking.zoo import find_config
from bucketrank_cli.main import app
from tests.published_codetr import Sizes, published_weights

SMALL = Sizes(32, 48, 1, 4, 2, 10, 5, 16)
CONFIG = """
_BASE_: "{base}"
MODEL:
  RESNETS: {{DEPTH: 18, RES2_OUT_CHANNELS: 64}}
  CODETR: {{HIDDEN_DIM: 32, FEEDFORWARD_DIM: 48, ENCODER_LAYERS: 1, DECODER_LAYERS: 1, NUM_HEADS: 4,
            NUM_POINTS: 2, NUM_QUERIES: 10, NUM_CLASSES: 5}}
  ROI_BOX_HEAD: {{FC_DIM: 16}}
  ROI_HEADS: {{NUM_CLASSES: 5}}
  RETINANET: {{NUM_CLASSES: 5}}
"""


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return published_weights(SMALL, resnet18(weights=None))


@pytest.fixture
def published(
    weights: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, torch.Tensor]:
    """Weights in published.pth, as MMDetection stores them, with a config of their detector."""
    monkeypatch.chdir(tmp_path)
    torch.save({"meta": {"CLASSES": ("cat", "dog"), "epoch": 12}, "state_dict": weights},
               "published.pth")  # fmt: skip
    base = find_config("co_deformable_detr_R_50_1x").resolve()
    Path("own.yaml").write_text(CONFIG.format(base=base))
    return weights


def convert(*words: str) -> Result:
    return CliRunner().invoke(app, ["convert-weights", *words])


def test_there_and_back_again(published):
    given = ("--config", "own.yaml")
    result = convert("published.pth", "--output", "own.pth", *given)
    assert result.exit_code == 0, result.output
    assert "Wrote own.pth; tensors: " in result.stdout
    assert "unmatched" not in result.stdout
    content = torch.load("own.pth", weights_only=True)
    model = build_model(load_config("own.yaml", loss="score", device="cpu"))
    SafeCheckpointer(model).load_all("own.pth")
    assert torch.equal(
        model.head.query_embedding.weight, content["model"]["head.query_embedding.weight"]
    )

    result = convert(
        "own.pth", "--to", "mmdetection", "--output", "again.pth", *given, "--format", "json"
    )
    rows = json.loads(result.stdout)
    assert {row["status"] for row in rows} == {"matched", "not needed"}
    again = torch.load("again.pth", weights_only=True)["state_dict"]
    assert again.keys() == published.keys()
    assert all(torch.equal(again[name], value) for name, value in published.items())

    result = convert("own.pth", "--output", "new.pth", *given)
    assert result.exit_code == 2, "it has this layout already"
    assert "No tensor of own.pth" in " ".join(result.output.split())
    assert not Path("new.pth").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["missing.pth", "--output", "new.pth"], "cannot be read|no weights at"),
        (["text", "--output", "new.pth"], "text were not loaded"),
        (["numbers.pth", "--output", "new.pth"], "hold no tensors by parameter name"),
        (["published.pth", "--output", "text"], "There is a file text already"),
        (["published.pth", "--output", "new.pth", "--config", "retinanet_tiny"], "not of Co-DETR"),
        (["published.pth", "--output", "new.pth", "--config", "own.yaml", "--to", "mmdetection"],
         "No tensor of published.pth .* layout of detectron2"),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_is_told_and_nothing_is_written(published, words, sentence):
    Path("text").write_text("no weights")
    torch.save({"a": 1}, "numbers.pth")
    result = convert(*words)
    assert result.exit_code == 2, result.output
    assert re.search(sentence, " ".join(result.output.split())), result.output
    assert not Path("new.pth").exists()
    assert Path("text").read_text() == "no weights"
