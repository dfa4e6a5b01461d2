"""COCO JSON that is broken in any way: checked, shown, trained and measured without a traceback."""

import copy
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner, Result

from bucketed_ranking.data.files import write_atomically
from bucketrank_cli.main import app
from tests.small_detectors import NARROW

WIDTH, HEIGHT = 72, 64
JUNK = [
    None, True, False, "", "1", "x", "\0", "\ud800", "../images/1.png", "a" * 300, [], {}, [[]],
    [1], {"a": 1}, -1, 0, 1, 2, 1.0, 1.5, -0.0, 1e-300, 1e308, -1e308, 2**31, 2**63, 10**400,
    math.nan, math.inf, -math.inf,
    [0, 0, 10, 10], [-5, -5, 9, 9], [1e307, 1e307, 1e308, 1e308], ["1", "2", "3", "4"],
    [[1, 2, 30, 2, 30, 40]], [[1, 2, 1e9, 2, 30, 40]], [["1", "2", "30", "2", "30", "40"]],
    {"counts": [0, WIDTH * HEIGHT], "size": [HEIGHT, WIDTH]},
    {"counts": [-5, WIDTH * HEIGHT + 5], "size": [HEIGHT, WIDTH]},
    {"counts": [0.5, WIDTH * HEIGHT - 0.5], "size": [HEIGHT, WIDTH]},
    {"counts": "`o0", "size": [HEIGHT, WIDTH]},
    {"counts": "zzzzzzzz", "size": [HEIGHT, WIDTH]},
]  # fmt: skip
CASES = settings.default.max_examples
FIXTURE = [HealthCheck.function_scoped_fixture]  # each case overwrites the JSON of the last


def content() -> dict[str, Any]:
    """Three pictures with polygons, run lengths of both kinds, and a crowd."""
    masks: list[Any] = [
        [[4, 4, 30, 4, 30, 30, 4, 30]],
        {"counts": [200, 40, WIDTH * HEIGHT - 240], "size": [HEIGHT, WIDTH]},
        {"counts": "T8j0V1" + 49 * "0" + "lc2", "size": [HEIGHT, WIDTH]},
    ]
    annotations = [
        {
            "id": number, "image_id": 1 + number % 3, "category_id": 1 + number % 2,
            "bbox": [4, 4, 26, 26], "area": 676, "iscrowd": int(number == 5),
            "segmentation": copy.deepcopy(masks[number % 3]),
        }
        for number in range(1, 7)
    ]  # fmt: skip
    return {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in (1, 2, 3)
        ],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every container below a node with each of its keys or indices."""
    keys = list(node) if isinstance(node, dict) else range(len(node))
    for key in keys:
        yield node, key
        if isinstance(node[key], dict | list):
            yield from places(node[key])


@st.composite
def broken(draw: Any) -> dict[str, Any]:
    """The content after one to four changes at any depth."""
    whole = content()
    for _ in range(draw(st.integers(1, 4))):
        found = list(places(whole))
        if not found:
            break
        node, key = draw(st.sampled_from(found))
        change = draw(st.sampled_from(["replace", "replace", "delete", "double", "exchange"]))
        if change == "delete":
            del node[key]
        elif change == "double" and isinstance(node, list):
            node.insert(key, copy.deepcopy(node[key]))
        elif change == "exchange":
            other, there = draw(st.sampled_from(found))
            node[key] = copy.deepcopy(other[there])
        else:
            node[key] = copy.deepcopy(draw(st.sampled_from(JUNK)))
    return whole


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str | bytes], Path]:
    """Registers a JSON of this text, with three pictures, as the data set `fuzz`."""
    monkeypatch.setenv("BUCKETRANK_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    images = tmp_path / "images"
    images.mkdir()
    for number in (1, 2, 3):
        pixels = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(images / f"{number}.png")
    path = tmp_path / "a.json"
    write_atomically(
        tmp_path / "bucketrank-datasets.yaml", "fuzz: {json: a.json, images: images}\n"
    )

    def write(text: str | bytes) -> Path:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def invoke(*arguments: str) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.output
    return result


@settings(max_examples=CASES // 6, suppress_health_check=FIXTURE)
@given(broken())
def test_any_json_is_checked_and_shown(put: Callable, whole: dict[str, Any]) -> None:
    put(json.dumps(whole))
    checked = invoke("dataset", "check", "fuzz")
    assert checked.exit_code in (0, 1)
    shown = invoke("dataset", "show", "fuzz", "--draw", "1")
    assert shown.exit_code in (0, 2)
    if checked.exit_code == 0:
        assert shown.exit_code == 0


@settings(max_examples=CASES // 10, suppress_health_check=FIXTURE)
@given(st.integers(0), st.binary(max_size=4), st.sampled_from(["cut", "insert", "exchange"]))
def test_any_bytes_are_checked_and_shown(
    put: Callable, place: int, piece: bytes, change: str
) -> None:
    text = json.dumps(content()).encode()
    place %= len(text)
    rest = {"cut": b"", "insert": text[place:], "exchange": text[place + len(piece) :]}[change]
    put(text[:place] + piece + rest)
    assert invoke("dataset", "check", "fuzz").exit_code in (0, 1)
    assert invoke("dataset", "show", "fuzz").exit_code in (0, 2)


@settings(max_examples=max(2, CASES // 100), suppress_health_check=FIXTURE)
@given(broken(), st.sampled_from(["mask_rcnn_tiny", "retinanet_tiny", "faster_rcnn_tiny"]))
def test_what_is_left_of_any_json_is_trained_and_measured(
    put: Callable, whole: dict[str, Any], detector: str
) -> None:
    pytest.importorskip("detectron2", reason="detectron2 is not installed")
    put(json.dumps(whole))
    shown = invoke("dataset", "show", "fuzz")
    shutil.rmtree("run", ignore_errors=True)
    trained = invoke(
        "train", detector, "--train", "fuzz", "--val", "fuzz", "--output", "run", "--seed", "1",
        *NARROW, "SOLVER.MAX_ITER", "1",
    )  # fmt: skip
    if shown.exit_code == 2 or (detector.startswith("mask") and "have no mask" in trained.output):
        assert trained.exit_code == 2
        return
    assert trained.exit_code == 0, trained.output
    results = json.loads(Path("run/results.json").read_text())
    assert all(math.isfinite(value) for value in results["final_losses"].values())
