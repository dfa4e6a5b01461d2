"""The page of a report: what it says, what it survives, and what a browser makes of it."""

import json
import re
import shutil
import subprocess
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from bucketed_ranking.data.catalog import register
from bucketed_ranking.data.registry import add_dataset, find_dataset
from bucketed_ranking.engine import evaluation, report
from bucketed_ranking.engine.report.matches import average_precision, class_curves, load_pictures
from bucketed_ranking.engine.run_folder import evaluation_folder
from tests.stored_run import Listed, write_run

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
NASTY = """<script>alert(1)</script>"><img src=x onerror="alert(2)">$x$ _a_ {{ 7 * 7 }}"""
METRICS = [
    {"iteration": 1, "total_loss": 2.0, "loss_rank": 0.9, "bbox/AP": 10.0},
    {"iteration": 3, "total_loss": 1.5, "loss_rank": 0.7, "bbox/AP": 20.0},
]


class Page(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def sources(self):
        return [attrs["src"] for tag, attrs in self.tags if tag == "img"]


def noisy(dataset: str, seed: int = 0) -> Listed:
    """Finds most objects, some of them badly, twice or as another class, and some that are none."""
    info, rng = register(dataset), np.random.default_rng(seed)
    content = json.loads(info.json.read_text())
    detections = {image["id"]: [] for image in content["images"]}
    for each in content["annotations"]:
        index = info.category_ids.index(each["category_id"])
        x, y, *size = each["bbox"]
        shift = rng.choice([0, 2, 12])
        detections[each["image_id"]] += [
            (x + shift, y, *size, rng.uniform(0.05, 0.1), index),
            (x + 2, y + 2, *size, rng.uniform(0.01, 0.07), rng.integers(info.num_classes)),
            (0, 0, 8, 8, rng.uniform(0.01, 0.05), index),
        ]
    return Listed(detections)


def changed(blobs: str, folder, name: str, change) -> str:
    """A data set like the validation blobs, after a change of its JSON's content."""
    entry = find_dataset(f"{blobs}_val")
    content = json.loads(entry.json.read_text())
    change(content)
    (folder / f"{name}.json").write_text(json.dumps(content))
    add_dataset(name, folder / f"{name}.json", entry.images, force=True)
    return register(name).name


def page_of(folder, dataset: str, model, **how) -> Page:
    write_run(folder, dataset, model, **how)
    assert report.report_training(folder) == folder / "report.html"
    html = (folder / "report.html").read_text()
    page = Page(html)
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "link", "base", "form"}
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert all(re.match(r"data:image/(png|jpeg);base64,[\w+/=]+$", s) for s in page.sources())
    assert len(html) < 5e6
    assert not re.search(r"\b(nan|inf|None)\b", page.text)
    return page


@pytest.fixture
def val(blobs) -> str:
    return register(f"{blobs}_val").name


def test_pictures_hold_what_the_measure_counts(val, blobs, tmp_path):
    def make_crowds(content):
        for annotation in content["annotations"][::4]:
            annotation["iscrowd"] = 1

    for dataset in (val, changed(blobs, tmp_path, "crowded", make_crowds)):
        results = write_run(tmp_path / dataset, dataset, noisy(dataset))
        pictures = load_pictures(dataset, evaluation_folder(tmp_path / dataset, dataset), ["bbox"])
        curves = class_curves(pictures, 3)
        ap50 = np.mean([average_precision(*each) for each in curves])
        assert 0 < ap50 < 100
        assert ap50 == pytest.approx(results["bbox"]["AP50"], abs=1e-9)
        assert sum(count for _, count in curves) == (18 if dataset == val else 13)


def test_a_report_shows_everything(val, tmp_path):
    page = page_of(tmp_path / "run", val, noisy(val), metrics=METRICS)
    for part in (
        "Average precision", "Kinds of errors", "Confusion matrix", "The worst pictures",
        "bucketrank train retinanet_tiny", "A Processor", "best weights were those after 2",
        "6 pictures, 18 boxes, 3 classes", "threshold with the best F1",
    ):  # fmt: skip
        assert part in page.text
    # PR, F1, reliability before and after, losses, AP; pairs of the worst pictures.
    assert len(page.sources()) == 6 + 2 * 6


def test_names_from_outside_are_text(blobs, tmp_path):
    def rename(content):
        content["categories"][0]["name"] = NASTY

    name = changed(blobs, tmp_path, "nasty", rename)
    page = page_of(tmp_path / "run", name, noisy(name), command=("bucketrank", "train", NASTY))
    assert page.text.count(NASTY) >= 3, "in two tables and the command"


def test_one_class(blobs, tmp_path):
    def keep_one(content):
        content["categories"] = content["categories"][:1]
        for annotation in content["annotations"]:
            annotation["category_id"] = content["categories"][0]["id"]

    name = changed(blobs, tmp_path, "single", keep_one)
    assert "Confusion matrix" in page_of(tmp_path / "run", name, noisy(name)).text


def test_of_many_classes_the_most_confused_are_shown(blobs, tmp_path):
    def add_classes(content):
        content["categories"] += [{"id": 100 + i, "name": f"more {i}"} for i in range(87)]
        for index, annotation in enumerate(content["annotations"]):
            annotation["category_id"] = 100 + index

    name = changed(blobs, tmp_path, "many", add_classes)
    page = page_of(tmp_path / "run", name, noisy(name))
    assert "78 others are left out" in page.text
    assert "8 classes with the lowest AP50" in page.text
    assert "more 86" in page.text


def test_nothing_found(val, tmp_path):
    page = page_of(tmp_path / "run", val, Listed({}))
    assert "Nothing right was found in the 6 pictures with 18 objects (0 detections)" in " ".join(
        page.text.split()
    )
    assert "Nothing was logged" in page.text


def test_nothing_there(blobs, tmp_path):
    name = changed(blobs, tmp_path, "emptied", lambda content: None)
    clean = register(name).json
    content = json.loads(clean.read_text())
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    clean.write_text(json.dumps(content))  # as no data set of a user's can be
    found = Listed({image: [(0, 0, 4, 4, 0.5, 0)] for image in range(1, 7)})
    assert "0 objects" in page_of(tmp_path / "run", name, found).text


def test_masks_have_their_ap_in_the_tables(val, tmp_path):
    class WithMasks(Listed):
        def forward(self, batch):
            outputs = super().forward(batch)
            for inputs, output in zip(batch, outputs, strict=True):
                found, height, width = output["instances"], inputs["height"], inputs["width"]
                y, x = np.mgrid[:height, :width]
                boxes = found.pred_boxes.tensor.numpy()[..., None, None]
                inside = (x >= boxes[:, 0]) & (y >= boxes[:, 1]) & (x < boxes[:, 2])
                found.pred_masks = inside & (y < boxes[:, 3])
            return outputs

    model = WithMasks(noisy(val).detections)
    page = page_of(tmp_path / "run", val, model, detector="mask_rcnn_tiny")
    assert "mask AP50" in page.text


def test_pictures_that_could_not_be_read_are_left_out(blobs, tmp_path):
    entry = find_dataset(f"{blobs}_val")
    images = tmp_path / "images"
    shutil.copytree(entry.images, images)
    add_dataset("fading", entry.json, images)
    model = noisy(register("fading").name)
    del model.detections[3]
    write_run(tmp_path / "run", "fading", model)
    (images / "003.jpg").write_bytes(b"no picture")
    folder = evaluation_folder(tmp_path / "run", "fading")
    assert len(load_pictures("fading", folder, ["bbox"])) == 6
    pictures = load_pictures("fading", folder, ["bbox"], num_unreadable=1)
    assert [picture.id for picture in pictures] == [1, 2, 4, 5, 6]


def test_a_report_that_fails_is_one_sentence_and_no_failure(val, tmp_path, capsys):
    write_run(tmp_path / "run", val, noisy(val))
    file = evaluation.detections_file(evaluation_folder(tmp_path / "run", val), "coco")
    file.write_text("[{")
    assert report.report_training(tmp_path / "run") is None
    shown = capsys.readouterr().err
    assert len(shown.splitlines()) == 1
    assert f"{file} is damaged" in shown
    assert "The training is done" in shown
    assert "Traceback" in (tmp_path / "run" / "log.txt").read_text()


_PROBE = """<body><iframe src="report.html" style="width: 390px; height: 800px"></iframe><script>
document.querySelector("iframe").onload = event => {
  const inside = event.target.contentWindow, images = [...inside.document.images];
  document.title = JSON.stringify({
    width: inside.innerWidth,
    needed: inside.document.documentElement.scrollWidth,
    images: images.length,
    loaded: images.filter(image => image.complete && image.naturalWidth).length,
    fetched: inside.performance.getEntriesByType("resource").map(entry => entry.name)
      .filter(name => !name.startsWith("data:")),
  });
};</script>"""


def test_a_browser_fetches_nothing_and_needs_no_more_than_a_phones_width(blobs, tmp_path):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"there is no browser to open the page in: none of {', '.join(BROWSERS)}")

    def add_classes(content):
        content["categories"] += [{"id": 100 + i, "name": f"class {i}" * 9} for i in range(20)]
        content["categories"][0]["name"] = NASTY
        for index, annotation in enumerate(content["annotations"]):
            annotation["category_id"] = 100 + index

    name = changed(blobs, tmp_path, "wide", add_classes)
    page = page_of(tmp_path / "run", name, noisy(name), metrics=METRICS, command=["x" * 300])
    (tmp_path / "run" / "probe.html").write_text(_PROBE)
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format, *arguments):
            asked.append(self.path)

    with ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Handler, directory=tmp_path / "run")
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
            f"http://127.0.0.1:{server.server_port}/probe.html",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        server.shutdown()
    found = re.search(r"<title>(.*?)</title>", done.stdout)
    assert found, done.stdout[-500:] + done.stderr[-2000:]
    seen = json.loads(found[1])
    assert seen["width"] == 390
    assert seen["needed"] <= 390
    assert seen["loaded"] == seen["images"] == len(page.sources()) > 0
    assert seen["fetched"] == []
    assert set(asked) <= {"/probe.html", "/report.html", "/favicon.ico"}
