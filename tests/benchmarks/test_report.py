"""The report of a table, from stored cells alone."""

import csv
import io
import json
import math
import re

import pytest
from PIL import Image
from rich.console import Console

pytest.importorskip("detectron2", reason="detectron2 is not installed")


from bucketed_ranking.benchmarks import cell_records as records
from bucketed_ranking.benchmarks import table
from bucketed_ranking.benchmarks.report import write_report
from bucketed_ranking.errors import BucketRankError
from tests.benchmarks.stored import grid_entry, write_cell


@pytest.fixture
def output(tmp_path):
    """Two detectors, three losses, two seeds; one cell failed, one has not been started."""
    for seed, gain in ((1, 0.0), (2, 2.0)):
        for loss, ap, seconds in (("score", 48, 0.3), ("rs", 50, 0.8), ("brs", 51, 0.4)):
            write_cell(tmp_path, "retinanet_tiny", loss, seed, ap=ap + gain, seconds=seconds)
    write_cell(tmp_path, "mask_rcnn_tiny", "brs", 1, ap=40, segm=30)
    write_cell(
        tmp_path, "mask_rcnn_tiny", "rs", 1,
        state="failed", iterations=3, error="RuntimeError: no | more.",
    )  # fmt: skip
    records.add_to_grid(tmp_path, [grid_entry("later", "mask_rcnn_tiny", "score", 9)])
    return tmp_path


def rows_of(output):
    write_report(records.read_records(output), output)
    content = json.loads((output / "table.json").read_text())
    return {(row["config"], row["loss"]): row for row in content["rows"]}


def test_means_deviations_differences_and_speed_up(output):
    rows = rows_of(output)
    brs = rows["retinanet_tiny", "brs"]
    assert brs["bbox_AP"] == {"mean": 52.0, "std": pytest.approx(math.sqrt(2)), "count": 2}
    assert brs["bbox_AP_difference_from_unbucketed"]["mean"] == 1.0
    # Seed by seed: what the seeds share does not count as noise.
    difference = brs["bbox_AP_difference_from_score"]
    assert difference == {"mean": 3.0, "std": 0.0, "count": 2}
    assert brs["speed_up"] == pytest.approx(2.0)
    assert brs["classification_loss_share"]["mean"] == pytest.approx(0.2)
    assert rows["retinanet_tiny", "rs"]["speed_up"] is None
    assert rows["mask_rcnn_tiny", "brs"]["segm_AP"]["mean"] == 30.0
    assert rows["mask_rcnn_tiny", "brs"]["bbox_AP"]["std"] is None
    assert rows["mask_rcnn_tiny", "brs"]["speed_up"] is None
    assert ("mask_rcnn_tiny", "rs") not in rows


def test_markdown_says_what_was_measured_and_what_failed(output):
    rows_of(output)
    text = (output / "table.md").read_text()
    assert "7 of 9 cells finished, seeds 0, 1, 2" in text
    assert "A Processor (2 threads), torch 2.15.0" in text
    assert re.search(r"\| +52\.0 ± 1\.4 \|", text)
    assert "+1.0 ± 0.0" in text
    assert "## Mask AP" in text
    assert "RuntimeError: no \\| more." in text
    assert "ring\\|x" in text
    assert "not started" in text
    # Every line of a table has as many columns as its header.
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_no_published_number_stands_beside_another_data_set(output):
    write_cell(output, "faster_rcnn_R_50_FPN_1x", "brs", 1)
    rows_of(output)
    assert "ublished" not in (output / "table.md").read_text()


def test_published_numbers_stand_beside_ours_and_are_marked(tmp_path):
    config = "faster_rcnn_R_50_FPN_1x"
    write_cell(tmp_path, config, "brs", 1, ap=39.9, dataset="coco", images_per_ranking=4)
    rows_of(tmp_path)
    text = (tmp_path / "table.md").read_text()
    section = text[text.index("## Published numbers") :]
    assert "AP published" in section
    (line,) = [line for line in section.split("##")[1].splitlines() if config in line]
    found = [cell.strip() for cell in line.split("|")[1:-1]]
    assert found == [config, "brs", "4", "39.9", "39.5", "0.400", "0.17", "-", "3.00x"]
    assert "Not compared" not in text


def test_no_published_number_stands_beside_a_variant(tmp_path):
    how = {"dataset": "coco", "images_per_ranking": 4, "variant": "fixed"}
    write_cell(tmp_path, "faster_rcnn_R_50_FPN_1x", "brs", 1, **how)
    rows_of(tmp_path)
    assert "ublished" not in (tmp_path / "table.md").read_text()


def test_rankings_over_another_number_of_images_are_not_compared_with_the_paper(tmp_path):
    write_cell(tmp_path, "faster_rcnn_R_50_FPN_1x", "brs", 1, dataset="coco", images_per_ranking=16)
    rows_of(tmp_path)
    text = (tmp_path / "table.md").read_text()
    assert "## Published numbers" not in text
    assert "Not compared with the paper, whose rankings span 4 images" in text
    assert "another number (16)" in text


def test_rankings_over_other_numbers_of_images_are_neither_averaged_nor_compared(tmp_path):
    for loss, seed, images in (("rs", 1, 8), ("rs", 2, 4), ("brs", 1, 8), ("score", 1, 4)):
        write_cell(tmp_path, "retinanet_tiny", loss, seed, images_per_ranking=images)
    write_report(records.read_records(tmp_path), tmp_path)
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    found = {(row["loss"], row["images_per_ranking"]): row for row in rows}
    assert set(found) == {("rs", 8), ("rs", 4), ("brs", 8), ("score", 4)}
    assert found["brs", 8]["bbox_AP_difference_from_unbucketed"]["count"] == 1
    assert found["brs", 8]["bbox_AP_difference_from_score"] is None
    assert found["rs", 4]["bbox_AP_difference_from_score"] is None  # no seed in common
    assert "neither averaged nor compared" in (tmp_path / "table.md").read_text()


def test_html_needs_no_other_file(output):
    rows_of(output)
    text = (output / "table.html").read_text()
    pictures = list(output.glob("*.png"))
    assert len(pictures) == text.count('src="data:image/png;base64,') == 3
    assert not re.search(r"(src|href)=[\"'](?!data:)", text)


def test_the_tables_of_results_come_before_the_pictures(output):
    rows_of(output)
    for name, picture in (("table.md", "](curves.png)"), ("table.html", "<img")):
        text = (output / name).read_text()
        places = [text.index(title) for title in ("Box AP", "Time and memory", picture, "Runs")]
        assert places == sorted(places)


def test_csv_has_every_cell_with_all_that_is_known(output):
    rows_of(output)
    cells = {
        row["name"]: row for row in csv.DictReader(io.StringIO((output / "table.csv").read_text()))
    }
    assert len(cells) == 9
    brs = cells["retinanet_tiny-brs-seed2"]
    assert (brs["bbox_AP"], brs["bbox_AP[disc]"], brs["bbox_APl"]) == ("53.0", "54.0", "")
    assert (brs["final_loss_rank"], brs["git_commit"], brs["torch_version"]) == (
        "0.25", "c0ffee", "2.15.0",
    )  # fmt: skip
    assert (brs["iterations"], brs["max_iter"]) == ("100", "100")
    assert (brs["config_hash"], brs["device_name"]) == ("0123456789ab", "A Processor")
    assert float(brs["classification_loss_share"]) == pytest.approx(0.2)
    assert float(brs["data_seconds_per_iteration"]) == pytest.approx(0.02)
    assert cells["mask_rcnn_tiny-rs-seed1"]["state"] == "failed"


def test_pictures_show_something(output):
    rows_of(output)
    for path in output.glob("*.png"):
        with Image.open(path) as picture:
            assert picture.width > 600
            assert len(picture.convert("RGB").getcolors(1 << 20)) > 50


def test_a_run_under_way_counts_as_unfinished(output):
    name = write_cell(output, "retinanet_tiny", "ap", 1, state="training", iterations=0)
    # A line that is being written.
    with (output / "cells" / name / "metrics.json").open("a") as stream:
        stream.write('{"iteration": 5')
    (record,) = [r for r in records.read_records(output) if r["name"] == name]
    assert record["state"] == records.UNFINISHED
    assert record["curves"] == {"bbox": [(50, 25.0)]}


def test_printing_tells_of_failures(output, capsys):
    console = Console(width=120)
    table.report(output, console)
    printed = capsys.readouterr().out
    assert "mask_rcnn_tiny-rs-seed1: failed: RuntimeError: no | more." in printed
    assert "52.0 ± 1.4" in printed


def test_without_a_table(tmp_path):
    with pytest.raises(BucketRankError, match="no table in"):
        table.report(tmp_path, Console())


def test_variants_are_compared_with_the_rows_without_them(tmp_path):
    for seed, gain in ((1, 1.0), (2, 3.0)):
        write_cell(tmp_path, "retinanet_tiny", "score", seed, ap=40)
        write_cell(tmp_path, "retinanet_tiny", "brs", seed, ap=50)
        write_cell(tmp_path, "retinanet_tiny", "brs", seed, ap=50 + gain, variant="fixed")
        write_cell(tmp_path, "retinanet_tiny", "rs", seed, ap=51, variant="fixed")
    write_report(records.read_records(tmp_path), tmp_path)
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    found = {(row["loss"], row["variant"]): row for row in rows}
    assert set(found) == {("score", ""), ("brs", ""), ("brs", "fixed"), ("rs", "fixed")}
    fixed = found["brs", "fixed"]
    assert fixed["bbox_AP_difference_from_unchanged"]["mean"] == 2
    assert fixed["bbox_AP_difference_from_score"]["mean"] == 12
    assert fixed["bbox_AP_difference_from_unbucketed"]["mean"] == 1
    assert found["brs", ""]["bbox_AP_difference_from_unchanged"] is None
    assert found["brs", ""]["bbox_AP_difference_from_unbucketed"] is None
    text = (tmp_path / "table.md").read_text()
    assert "brs fixed" in text
    assert "vs no variant" in text
