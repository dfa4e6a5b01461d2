"""The Python API, as people import it: `from bucketed_ranking import Detector, evaluate, train`."""

import dataclasses
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from PIL import Image

from bucketed_ranking import BucketRankError, Detector, Training, evaluate, train
from bucketed_ranking.engine.calibration import ScoreMap
from bucketed_ranking.engine.run_calibration import Calibration, fingerprint
from tests.coco_blobs import write_blobs


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three pictures without loss: two of 96 x 80 pixels, the last upright."""
    folder = write_blobs(tmp_path_factory.mktemp("pictures"), 3, seed=7).parent / "images"
    files = []
    for path in sorted(folder.iterdir()):
        files.append(path.with_suffix(".png"))
        Image.open(path).save(files[-1])
    return files


@pytest.fixture(scope="module")
def detector(mask_run: Training) -> Detector:
    """It shows all that it finds."""
    return Detector(mask_run.folder, weights="last", device="cpu", threshold=0.0)


def test_importing_the_package_imports_nothing_heavy_and_says_what_is_missing():
    script = (
        "import sys, bucketed_ranking\n"
        "heavy = {'torch', 'detectron2', 'numpy', 'cv2', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert {'Detector', 'train', 'evaluate'} <= set(dir(bucketed_ranking))\n"
        "assert not hasattr(bucketed_ranking, 'detector')\n"
        "sys.modules['detectron2'] = None\n"
        "try:\n"
        "    from bucketed_ranking import Detector\n"
        "except bucketed_ranking.BucketRankError as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "bucketed_ranking.Detector needs detectron2" in result.stdout, result.stderr


def test_detections_are_arrays_in_pixels_of_the_picture(detector, pictures):
    found = detector(pictures[2])
    assert len(found) > 5
    assert found.boxes.shape == (len(found), 4)
    assert found.masks.shape == (len(found), 96, 80)
    assert (found.boxes >= 0).all()
    assert (found.boxes <= [80, 96, 80, 96]).all()
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    assert (np.diff(found.scores) <= 0).all()
    assert [found.all_class_names[index] for index in found.classes] == found.class_names
    assert detector.class_names == found.all_class_names == ("red", "green", "blue")
    for index, each in enumerate(found):
        assert (each.box == found.boxes[index]).all()
        assert each.score == found.scores[index]
        assert each.class_name == detector.class_names[each.class_index]
        assert (each.mask == found.masks[index]).all()


def test_paths_arrays_and_pil_images_are_the_same_picture(detector, pictures):
    with Image.open(pictures[0]) as opened:
        image = opened.convert("RGB")
    array = np.asarray(image)
    expected = detector(str(pictures[0]))
    for each in detector([pictures[0], image, array, image.convert("RGBA")]):
        assert np.array_equal(each.boxes, expected.boxes)
        assert np.array_equal(each.scores, expected.scores)
    assert not np.array_equal(detector(array[:, :, ::-1]).scores, expected.scores), "RGB, not BGR"
    grey = detector(np.asarray(image.convert("L")))
    assert np.array_equal(grey.scores, detector(image.convert("L").convert("RGB")).scores)


def test_a_batch_gives_what_single_pictures_give(detector, pictures):
    for one, each in zip(pictures, detector(iter(pictures), batch_size=2), strict=True):
        single = detector(one)
        assert len(each) == len(single)
        np.testing.assert_allclose(each.scores, single.scores, atol=1e-5)
        np.testing.assert_allclose(each.boxes, single.boxes, atol=1e-2)
    assert detector([]) == []


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ("no_such.jpg", "no_such.jpg cannot be read"),
        (__file__, "test_api.py cannot be read"),
        (np.zeros((8, 8, 3)), r"an array \[8, 8, 3\] of float64"),
        (np.zeros((2, 8, 8, 3), np.uint8), "A picture is a path"),
        (np.zeros((0, 8, 3), np.uint8), r"an array \[0, 8, 3\] of uint8"),
        (np.zeros((8, 8), np.float32), "its pixels are floating-point"),
        (None, "this is NoneType"),
        ([3], "this is int"),
    ],
)
def test_what_is_no_picture_is_a_sentence(detector, picture, message):
    with pytest.raises(BucketRankError, match=message):
        detector(picture)


def test_a_picture_that_pillow_has_only_begun_to_read_is_a_sentence(detector, pictures, tmp_path):
    path = tmp_path / "cut.jpg"
    Image.open(pictures[0]).save(path)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(BucketRankError, match="The picture cannot be read: image file is trunc"):
        detector(Image.open(path))


def test_drawing_shows_boxes_in_a_copy_of_the_picture(detector, pictures, tmp_path):
    path = tmp_path / "x.png"
    shutil.copy(pictures[0], path)
    found = detector(path)
    drawn = found.draw(short_side=160)
    assert drawn.size == (192, 160)
    plain = np.asarray(Image.open(path).convert("RGB").resize(drawn.size))
    assert (np.asarray(drawn) != plain).any(axis=2).mean() > 0.2
    path.unlink()
    with pytest.raises(BucketRankError, match=r"x\.png cannot be read"):
        found.draw()


def test_supervision_takes_detections(detector, pictures):
    pytest.importorskip("supervision")
    found = detector(pictures[0])
    theirs = found.to_supervision()
    assert np.array_equal(theirs.xyxy, found.boxes)
    assert np.array_equal(theirs.mask, found.masks)
    assert np.array_equal(theirs.class_id, found.classes)
    assert np.array_equal(theirs.confidence, found.scores)
    assert theirs["class_name"].tolist() == found.class_names


def test_without_supervision_it_is_said_how_to_get_it(detector, pictures, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(BucketRankError, match="pip install supervision"):
        detector(pictures[0]).to_supervision()


def test_scores_are_calibrated_unless_asked_for_as_they_are(detector, pictures, mask_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(mask_run.folder, run)
    score_map = ScoreMap("logistic", (0.0, 0.5, 1.0), (0.0, 0.9, 1.0))
    known = Calibration("val", score_map, best_f1=0.25, precision={80: 0.4})
    name = fingerprint(detector.trained.model)
    known.write(run / "calibration" / f"{name}.json")
    how = {"weights": "last", "device": "cpu"}
    raw = Detector(run, **how, raw_scores=True, threshold=0.0)
    likely = Detector(run, **how, threshold=0.0)
    assert likely.calibrated
    assert not raw.calibrated
    assert np.allclose(likely(pictures[0]).scores, score_map(raw(pictures[0]).scores))
    assert Detector(run, **how).threshold == pytest.approx(float(score_map(np.array(0.25))))
    assert Detector(run, **how, raw_scores=True).threshold == 0.25
    assert Detector(run, **how, raw_scores=True, precision=0.8).threshold == 0.4
    scores = raw(pictures[0]).scores
    middle = float(np.median(scores))
    kept = Detector(run, **how, raw_scores=True, threshold=middle)(pictures[0])
    assert np.array_equal(kept.scores, scores[scores >= middle])
    with pytest.raises(BucketRankError, match="precision of 99 %"):
        Detector(run, **how, precision=0.99)


def test_weights_are_best_last_or_a_file(mask_run, pictures, detector, tmp_path):
    file = tmp_path / "w.pth"
    shutil.copy(mask_run.folder / "model_final.pth", file)
    other = Detector(str(mask_run.folder), weights=file, device="cpu", threshold=0.0)
    assert np.array_equal(other(pictures[0]).scores, detector(pictures[0]).scores)
    assert "model_final.pth (after 4 iterations)" in repr(detector)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"threshold": 1.5}, "--score-threshold is 1.5; it must be from 0 to 1"),
        ({"threshold": math.nan}, "--score-threshold is nan"),
        ({"threshold": "0.5"}, "--score-threshold is '0.5'"),
        ({"threshold": 0.5, "precision": 0.5}, "not both"),
        ({"weights": "none.pth"}, "none.pth"),
        ({"device": "cuda:97"}, "cuda:97"),
        ({"options": {"NO.KEY": 1}}, "no config key 'NO.KEY'"),
    ],
)
def test_arguments_of_a_detector_that_mean_nothing(mask_run, how, message):
    with pytest.raises(BucketRankError, match=message):
        Detector(mask_run.folder, **how)


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(BucketRankError, match="There is no run"):
        Detector(tmp_path)


def test_training_returns_its_results_as_an_object(mask_run):
    written = json.loads((mask_run.folder / "results.json").read_text())
    for task, found in (("bbox", mask_run.bbox), ("segm", mask_run.segm)):
        expected = written[task]
        assert found.summary["AP75"] == pytest.approx(expected["AP75"], nan_ok=True)
        assert found.ap == expected["AP"]
        assert found.ap50 == expected["AP50"]
        assert found.per_class.keys() == expected["per_class"].keys()
    assert math.isnan(mask_run.bbox.summary["APl"]), "no object is large"
    assert (mask_run.iterations, mask_run.loss) == (4, "brs")
    assert mask_run.best_ap == mask_run.best["segm/AP"] == written["best"]["segm/AP"]
    assert mask_run.final_losses == written["final_losses"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        mask_run.loss = "ap"


def test_training_goes_on_or_refuses_as_the_command_does(mask_run, blobs):
    run_config = {"config": mask_run.folder / "config.yaml", "dataset": blobs, "device": "cpu"}
    with pytest.raises(BucketRankError, match="is not empty"):
        train(**run_config, output=mask_run.folder)
    said: list[str] = []
    again = train(**run_config, output=mask_run.folder, resume=True, say=said.append)
    assert said == [f"The run in {mask_run.folder} is finished: there is nothing left to do."]
    assert str(again) == str(mask_run)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "Name a config"),
        ({"config": "retinanet_tiny", "epochs": math.nan}, "--epochs is nan"),
        ({"config": "retinanet_tiny", "batch_size": 0}, "--batch-size is 0; it must be 1 or more"),
        ({"config": "retinanet_tiny", "seed": 2**31}, "--seed is 2147483648"),
        ({"config": "retinanet_tiny", "on_nan": "ignore"}, "SOLVER.ON_NAN is 'ignore'"),
        ({"config": "retinanet_tiny", "options": {"SOLVER.MAX_ITER": 0}}, "SOLVER.MAX_ITER is 0"),
        ({"config": "retinanet_tiny", "val": "x"}, "not both"),
    ],
)
def test_arguments_of_a_training_that_mean_nothing(how, message, blobs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BucketRankError, match=message):
        train(**({"dataset": blobs} if how else {}) | how)
    assert not list(tmp_path.iterdir())


def test_an_evaluation_returns_what_the_training_measured(mask_run, blobs, tmp_path):
    said: list[str] = []
    done: list[tuple[int, int]] = []
    found = evaluate(
        mask_run.folder, weights="last", output=tmp_path, device="cpu", say=said.append,
        on_batch=lambda *counts: done.append(counts),
    )  # fmt: skip
    assert found.segm.ap == mask_run.segm.ap
    assert found.bbox.per_class == mask_run.bbox.per_class
    assert (found.folder, found.dataset, found.skipped) == (tmp_path, f"{blobs}_val", {})
    assert done[-1] == (6, 6)
    assert said == [f"Evaluating {found.weights} (after 4 iterations) on {blobs}_val"]
    with pytest.raises(BucketRankError, match="neither a run's folder nor a config"):
        evaluate("no_such_run")


def test_the_proposals_of_a_two_stage_detector_are_measured_on_their_own(mask_run, tmp_path):
    found = evaluate(
        mask_run.folder, output=tmp_path, device="cpu",
        options={"MODEL.META_ARCHITECTURE": "ProposalNetwork"},
    )  # fmt: skip
    recalls = found.box_proposals
    assert 0 < recalls["AR@100"] <= recalls["AR@1000"] <= 100
    assert (found.bbox, found.segm) == (None, None)
    assert json.loads((tmp_path / "results.json").read_text())["box_proposals"]["AR@100"] > 0
