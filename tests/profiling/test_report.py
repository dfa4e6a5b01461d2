"""What is made of the times: ratios, JSON, CSV, tables."""

import csv
import io
import json

import pytest
import torch
from rich.console import Console

from bucketed_ranking.profiling import report
from tests.profiling import given


@pytest.fixture
def rows() -> dict[str, dict]:
    return {row["loss"]: row for row in given.result().rows()}


def test_ratios_are_those_of_medians(rows):
    assert rows["rs"]["median_s"] == 8
    assert rows["brs"]["times_faster_than_loop"] == 4
    assert rows["rs-exact"]["times_faster_than_loop"] == 8
    assert rows["rs"]["times_faster_than_loop"] == 1
    assert rows["rs-exact"]["times_focal"] == 2
    assert rows["focal"]["times_focal"] == 1
    assert rows["sort"]["times_focal"] == 0.5


def test_what_is_not_known_is_none(rows):
    assert rows["ap"]["median_s"] is None
    assert rows["ap"]["skipped"] == given.TOO_SLOW
    assert rows["ap-exact"]["times_faster_than_loop"] is None
    assert rows["focal"]["times_faster_than_loop"] is None


def test_spread_and_memory(rows):
    assert (rows["rs-exact"]["quartile_1_s"], rows["rs-exact"]["quartile_3_s"]) == (0.75, 1.25)
    assert (rows["rs"]["min_s"], rows["rs"]["max_s"]) == (7, 20)
    assert rows["sort"]["quartile_1_s"] == rows["sort"]["quartile_3_s"] == 0.25
    assert rows["brs"]["peak_extra_bytes_per_logit"] == 4000


def test_the_json_holds_each_time_and_where_it_was_taken(tmp_path):
    report.write_json(given.profile(), tmp_path / "p.json")
    profile = json.loads((tmp_path / "p.json").read_text())
    assert profile["machine"]["cpu"] == "Some CPU"
    assert profile["machine"]["torch"] == "2.15.0"
    assert profile["date"].startswith("2026-11-22")
    assert "eager" in profile["methods"]["focal"]
    assert "profiler" in profile["methods"]["memory"]
    (case,) = profile["cases"]
    assert case["positives"] == 100
    assert case["relevant_negatives"] == 10
    entries = {entry["loss"]: entry for entry in case["entries"]}
    assert entries["rs"]["seconds"] == [7, 8, 20]
    assert entries["ap"]["skipped"] == given.TOO_SLOW


def test_each_line_of_the_csv_stands_alone(tmp_path):
    profile = given.profile(given.result("start"), given.result("trained"))
    report.write_csv(profile, tmp_path / "p.csv")
    with (tmp_path / "p.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 14
    assert {line["regime"] for line in lines} == {"start", "trained"}
    for line in lines:
        assert line["cpu"] == "Some CPU"
        assert line["date"] == "2026-11-22T12:00:00+00:00"
        assert bool(line["median_s"]) != bool(line["skipped"])


def test_the_table_fits_80_columns_and_says_why_something_is_missing():
    output = io.StringIO()
    report.print_tables(given.profile(), Console(file=output, width=80))
    text = output.getvalue()
    assert f"ap skipped: {given.TOO_SLOW}" in text
    assert "Some CPU, 2 threads" in text
    assert "…" not in text
    assert "8,000" in text
    assert "[1000, 1]" in text


def test_the_machine_is_described():
    machine = report.describe_machine(torch.device("cpu"), "float32")
    assert machine["cpu"]
    assert machine["threads"] == torch.get_num_threads()
    assert machine["gpu"] is None
