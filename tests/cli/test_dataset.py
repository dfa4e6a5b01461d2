"""`bucketrank dataset`: what each command prints, writes and exits with."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from bucketed_ranking.errors import BucketRankError
from bucketrank_cli.dataset import app

Toy = Callable[..., list[str]]


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    """Writes four pictures with a box each; returns the options that `add` takes for them."""
    monkeypatch.setenv("BUCKETRANK_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def write(bad_boxes: int = 0) -> list[str]:
        folder = tmp_path / "toy"
        folder.mkdir(exist_ok=True)
        images, annotations = [], []
        for number in range(1, 5):
            name = f"{number}.png"
            Image.new("RGB", (40, 30), (90, 120, 60)).save(folder / name)
            images.append({"id": number, "file_name": name, "width": 40, "height": 30})
            box = [5, 5, 0, 0] if number <= bad_boxes else [5, 5, 20, 15]
            annotations.append({"id": number, "image_id": number, "category_id": 1, "bbox": box})
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 1, "name": "[red]cell"}],
        }
        (folder / "a.json").write_text(json.dumps(content))
        return ["--json", str(folder / "a.json"), "--images", str(folder)]

    return write


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result.output


def fail(*arguments: str) -> str:
    """The sentence that the command line would print."""
    result = CliRunner().invoke(app, list(arguments))
    assert isinstance(result.exception, BucketRankError), result.output
    return str(result.exception)


def test_add_says_what_it_found_and_what_comes_next(toy: Toy) -> None:
    output = run("add", "toy", *toy(), "--val-fraction", "0.25")
    assert "toy_train: 3 images, 3 annotations, no problems" in output
    assert "toy_val: 1 images, 1 annotations, no problems" in output
    assert "bucketrank train --dataset toy" in output


def test_add_takes_labels_of_another_format(toy: Toy, tmp_path: Path) -> None:
    toy()
    folder = tmp_path / "toy"
    (folder / "a.json").unlink()
    (folder / "classes.txt").write_text("cell\n")
    for number in (1, 2, 3):
        (folder / f"{number}.txt").write_text("0 0.5 0.5 0.5 0.5\n0 0.5 0.5\n")
    output = run("add", "toy", str(folder), "--val-fraction", "0.25")
    assert "Format yolo: " in output
    assert "skipped 3 x line that is neither a box" in output
    assert "bucketrank train --dataset toy" in output
    assert "has changed" not in run("check", "toy")
    (folder / "4.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    assert f"{folder} has changed or gone since it was added" in run("check", "toy")
    assert "There is no format 'pascal'" in fail("add", "b", str(folder), "--format", "pascal")


def test_add_takes_one_source_of_labels(toy: Toy, tmp_path: Path) -> None:
    options = toy()
    assert "Name the labels" in fail("add", "b")
    assert "Name the labels" in fail("add", "b", str(tmp_path), *options)
    assert "--json needs --images" in fail("add", "b", *options[:2])
    assert "go with --json" in fail("add", "b", str(tmp_path), "--val-json", options[1])


def test_add_counts_problems_at_once(toy: Toy) -> None:
    output = run("add", "toy", *toy(bad_boxes=1))
    assert "1 x degenerate box" in output
    assert "bucketrank dataset check toy" in output


def test_add_refuses_a_taken_name_without_force(toy: Toy) -> None:
    run("add", "toy", *toy())
    assert "--force" in fail("add", "toy", *toy())
    run("add", "toy", *toy(), "--force")


def test_add_needs_files_that_exist(toy: Toy, tmp_path: Path) -> None:
    toy()
    message = fail("add", "toy", "--json", "none.json", "--images", "toy")
    assert str(tmp_path / "none.json") in message


def test_list_shows_names_and_where_they_come_from(toy: Toy) -> None:
    run("add", "toy", *toy(), "--val-fraction", "0.25")
    output = run("list")
    for word in ("toy_train", "user", "shapes_train", "embedded", "coco_2017_train", "absent"):
        assert word in output


def test_list_as_json(toy: Toy) -> None:
    run("add", "toy", *toy())
    rows = {row["name"]: row for row in json.loads(run("list", "--format", "json"))}
    assert rows["toy"]["present"]
    assert rows["toy"]["origin"] == "user"
    assert not rows["coco_2017_train"]["present"]


def test_list_is_quick_because_it_loads_little(toy: Toy) -> None:
    script = (
        "import sys; from bucketrank_cli.main import app; app(['dataset', 'list'], "
        "standalone_mode=False); heavy = {'torch', 'detectron2', 'cv2', 'numpy', 'PIL'}; "
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "shapes_train" in result.stdout


def test_check_is_clean_with_exit_code_zero(toy: Toy) -> None:
    run("add", "toy", *toy())
    assert "no problems" in run("check", "toy")


def test_check_finds_problems_in_both_splits_with_exit_code_one(toy: Toy) -> None:
    run("add", "toy", *toy(bad_boxes=2), "--val-fraction", "0.25")
    reports = json.loads(run("check", "toy", "--format", "json", code=1))
    assert [report["name"] for report in reports] == ["toy_train", "toy_val"]
    findings = [finding for report in reports for finding in report["findings"]]
    assert sum(f["count"] for f in findings if f["kind"] == "degenerate box") == 2
    assert "degenerate box" in run("check", "toy", code=1)


def test_check_survives_json_that_broke_since(toy: Toy, tmp_path: Path) -> None:
    run("add", "toy", *toy())
    (tmp_path / "toy/a.json").write_text("{")
    assert "unreadable JSON" in run("check", "toy", code=1)


def test_show_counts(toy: Toy) -> None:
    run("add", "toy", *toy(bad_boxes=1))
    output = run("show", "toy")
    assert "4 images, 3 boxes" in output
    assert "1 degenerate box" in output
    assert "[red]cell" in output
    (summary,) = json.loads(run("show", "toy", "--format", "json"))
    assert summary["classes"] == [{"name": "[red]cell", "boxes": 3, "images": 3}]
    assert summary["sizes"] == {"small": 3, "medium": 0, "large": 0}


def test_show_draws_pictures_large_enough_to_read(toy: Toy, tmp_path: Path) -> None:
    run("add", "toy", *toy())
    assert "Drew 3 pictures" in run("show", "toy", "--draw", "3", "--out", "drawn")
    drawn = sorted((tmp_path / "drawn").iterdir())
    assert len(drawn) == 3
    with Image.open(drawn[0]) as picture:
        assert min(picture.size) >= 480
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 2


def test_show_draws_no_more_than_there_are(toy: Toy, tmp_path: Path) -> None:
    run("add", "toy", *toy())
    run("show", "toy", "--draw", "99")
    assert len(list((tmp_path / "toy-pictures").iterdir())) == 4


def test_show_of_absent_files_says_where_they_belong(toy: Toy, tmp_path: Path) -> None:
    toy()
    assert str(tmp_path / "datasets/coco") in fail("show", "coco_2017_val")


def test_remove_leaves_the_files(toy: Toy, tmp_path: Path) -> None:
    run("add", "toy", *toy(), "--val-fraction", "0.5")
    assert "toy_train and toy_val" in run("remove", "toy")
    assert (tmp_path / "toy/a.json").is_file()
    assert "There is no data set" in fail("check", "toy")


def test_bccd_from_the_command_line(bccd: Path, toy: Toy) -> None:
    options: list[Any] = ["--images", bccd / "images"]
    options += ["--json", bccd / "annotations/instances_train.json"]
    options += ["--val-json", bccd / "annotations/instances_val.json"]
    run("add", "bccd", *map(str, options))
    reports = json.loads(run("check", "bccd", "--format", "json", code=1))
    found = [(f["kind"], f["count"]) for report in reports for f in report["findings"]]
    assert found == [("degenerate box", 1), ("degenerate box", 1)]
