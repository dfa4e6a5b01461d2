"""`bucketrank configs`: what it lists, quickly."""

import json
import subprocess
import sys

from typer.testing import CliRunner

from bucketed_ranking.zoo import available_configs
from bucketrank_cli.main import app


def test_the_table_names_every_config_and_marks_what_is_published():
    result = CliRunner().invoke(app, ["configs"], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    for name in available_configs():
        assert name in result.stdout, "names are not folded: they are there to be copied"
    assert "brs 39.5" in result.stdout
    assert "none of it was measured here" in result.stdout


def test_json_holds_the_whole_of_it():
    result = CliRunner().invoke(app, ["configs", "--format", "json"])
    configs = {config["name"]: config for config in json.loads(result.stdout)}
    mask = configs["mask_rcnn_R_101_FPN_3x"]
    assert (mask["task"], mask["detector"], mask["backbone"]) == ("masks", "Mask R-CNN", "R-101")
    assert (mask["dataset"], mask["iterations"], mask["batch_size"]) == ("coco_2017", 270000, 16)
    assert {row["loss"]: row["ap"] for row in mask["published"]} == {"rs": 40.2, "brs": 40.3}
    assert configs["retinanet_tiny"]["published"] == []


def test_it_needs_neither_detectron2_nor_torch():
    script = (
        "import sys; sys.modules['detectron2'] = sys.modules['torch'] = None\n"
        "from bucketrank_cli.main import app; app(['configs'])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
