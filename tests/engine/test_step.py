"""A step of training: mixed precision, batches in parts, and what is not finite."""

import copy
import math
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import Tensor

from bucketed_ranking.balance import FIRST_FACTOR
from bucketed_ranking.engine import runs
from bucketed_ranking.engine.data_loader import images_per_process
from bucketed_ranking.engine.failed_step import as_image, as_plain, load_step
from bucketed_ranking.engine.replay import replay
from bucketed_ranking.engine.setup import configure_datasets, load_config
from bucketed_ranking.engine.step import (
    NonFiniteError,
    TrainingStep,
    accumulate_gradients,
    build_grad_scaler,
)
from bucketed_ranking.errors import BucketRankError
from tests.parallel_trainers import (
    bad_image,
    build_step,
    named_batch,
    parallel_batches,
    train_in_parallel,
    train_until_it_stops,
)
from tests.processes import run_processes
from tests.small_detectors import NARROW, narrow_config, random_batch

LOSSES = ("score", "brs", "ap", "alrp-exact", "rs-exact")
DETECTORS = ("retinanet_tiny", "faster_rcnn_tiny")


def train(step: TrainingStep, iterations: int) -> EventStorage:
    with EventStorage() as storage:
        for step.iter in range(iterations):
            storage.iter = step.iter
            step.run_step()
    return storage


def weights_of(step: TrainingStep) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in step.model.state_dict().items()}


def gradients(model: torch.nn.Module, cfg: Any, batch: list[dict]) -> list[Tensor]:
    model.zero_grad()
    with EventStorage():
        accumulate_gradients(model, batch, cfg, build_grad_scaler(cfg))
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("detector", DETECTORS)
def test_the_gradient_of_parts_is_the_mean_of_their_gradients(detector, loss):
    cfg = narrow_config(detector, loss, "SOLVER.IMS_PER_BATCH", "4")
    torch.manual_seed(0)
    model = build_model(cfg).train()
    batch, other = random_batch((3, 2, 0, 4)), copy.deepcopy(model)
    torch.manual_seed(1)  # Faster R-CNN's own loss samples
    parts = [gradients(other, cfg, part) for part in (batch[:2], batch[2:])]
    torch.manual_seed(1)
    cfg.SOLVER.ACCUMULATE = 2
    for found, *of_parts in zip(gradients(model, cfg, batch), *parts, strict=True):
        torch.testing.assert_close(found, sum(of_parts) / 2)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("detector", DETECTORS)
def test_it_trains_in_parts_and_mixed_precision(detector, loss, tmp_path):
    options = "SOLVER.ACCUMULATE", "2", "SOLVER.AMP.ENABLED", "True", "SOLVER.BASE_LR", "0.01"
    batches = [named_batch("a", "b")] * 20
    step = build_step(tmp_path, batches, detector, loss, *options)
    step.model.loss_normalizer = 10.0  # of RetinaNet's own loss, which starts far too high
    storage = train(step, len(batches))
    history = [value for value, _ in storage.history("total_loss").values()]
    assert all(map(math.isfinite, history))
    assert min(history[-5:]) < 0.95 * max(history)


def test_autocast_is_what_mixed_precision_computes_in(tmp_path):
    types = set()
    step = build_step(
        tmp_path, [named_batch("a")], "retinanet_tiny", "brs", "SOLVER.AMP.ENABLED", "True"
    )
    step.model.head.cls_score.register_forward_hook(
        lambda _, given, output: types.add(output.dtype)
    )
    train(step, 1)
    assert types == {torch.bfloat16}
    assert all(value.dtype == torch.float32 for value in step.model.parameters())


@pytest.mark.parametrize("loss", ["score", "alrp-exact"])
def test_a_skipped_step_has_not_happened(tmp_path, loss):
    good, bad = [named_batch(name, f"{name}2") for name in "ab"], [named_batch("c"), bad_image("d")]
    results = {}
    for name, batches in {"with": [good[0], [*bad[0], bad[1]], good[1]], "without": good}.items():
        step = build_step(tmp_path, batches, "retinanet_tiny", loss, "SOLVER.ON_NAN", "skip")
        train(step, len(batches))
        results[name] = weights_of(step), step.skipped, step.state_dict()["skipped"]
    assert results["with"][1:] == (1, [1, 0])
    assert results["without"][1:] == (0, [0, 0])
    for name, value in results["without"][0].items():
        assert torch.equal(results["with"][0][name], value), name


def test_too_many_skipped_steps_in_a_row_stop(tmp_path, caplog):
    options = "SOLVER.ON_NAN", "skip", "SOLVER.MAX_SKIPPED", "5"
    good, bad = named_batch("good"), [bad_image("bad")]
    batches = [bad, bad, bad, bad, good, *[bad] * 5]
    step = build_step(tmp_path, batches, "retinanet_tiny", "brs", *options)
    with pytest.raises(NonFiniteError, match="as were the 4 before it"):
        train(step, len(batches))
    assert (step.iter, step.skipped) == (9, 9)
    assert (
        "Iteration 2 was skipped (3 in all): The loss is not finite: loss_rank nan" in caplog.text
    )
    # A disk must not fill up.
    assert len(list((tmp_path / "nan").iterdir())) == 3


def test_a_loss_that_is_not_finite_stops_before_the_update_and_can_be_replayed(tmp_path):
    batches = [named_batch("a", "b"), [*named_batch("c"), bad_image("d")]]
    step = build_step(tmp_path, batches, "mask_rcnn_tiny", "rs-exact")
    train(step, 1)
    before = weights_of(step)
    step.iter = 1
    with EventStorage(), pytest.raises(NonFiniteError) as stop:
        step.run_step()
    path = tmp_path / "nan" / "iteration_0000001.pth"
    said = str(stop.value)
    assert said.startswith("The loss is not finite: loss_rank nan, ")
    assert f"Its images are c.jpg, d.jpg. It is saved in {path}: `bucketrank replay" in said
    assert all(torch.equal(value, before[name]) for name, value in weights_of(step).items())
    found = replay(path, "cpu")
    assert (found.iteration, found.images) == (1, ["c.jpg", "d.jpg"])
    assert found.losses.keys() == found.recorded.keys()
    assert all(map(math.isnan, found.losses.values()))
    assert found.weights == []
    assert found.first_output == "backbone.bottom_up.stem.conv1.norm"
    assert "backbone.bottom_up.stem.conv1.weight" in found.gradients


def test_a_gradient_that_is_not_finite_is_told_though_the_losses_are(tmp_path):
    step = build_step(tmp_path, [named_batch("a")], "retinanet_tiny", "score")
    step.model.head.bbox_pred.bias.register_hook(lambda grad: grad * torch.nan)
    before = weights_of(step)
    message = "gradients of 1 parameters are not, such as that of head.bbox_pred.bias"
    with pytest.raises(NonFiniteError, match=message):
        train(step, 1)
    assert all(torch.equal(value, before[name]) for name, value in weights_of(step).items())
    # Without what broke it, the step gives what training saw.
    found = replay(tmp_path / "nan" / "iteration_0000000.pth", "cpu")
    assert found.losses == pytest.approx(found.recorded)
    assert (found.gradients, found.first_output) == ([], None)


def test_a_batch_that_cannot_be_saved_is_told_all_the_same(tmp_path):
    step = build_step(tmp_path, [[bad_image("a")]], "retinanet_tiny", "brs")
    (tmp_path / "nan").write_text("a file in the way")
    with pytest.raises(NonFiniteError, match=r"images are a.jpg. It could not be saved in"):
        train(step, 1)


def test_images_come_back_from_a_file_as_they_were(tmp_path):
    (image,) = named_batch("a")
    torch.save(as_plain(image), tmp_path / "image.pth")
    found = as_image(torch.load(tmp_path / "image.pth", weights_only=True))
    assert torch.equal(found["image"], image["image"])
    objects, expected = found["instances"], image["instances"]
    assert objects.image_size == expected.image_size
    assert torch.equal(objects.gt_boxes.tensor, expected.gt_boxes.tensor)
    assert torch.equal(objects.gt_classes, expected.gt_classes)
    masks = (each.gt_masks.crop_and_resize(each.gt_boxes.tensor, 8) for each in (objects, expected))
    assert torch.equal(*masks)


def test_files_that_are_no_steps_are_refused(tmp_path):
    with pytest.raises(BucketRankError, match="There is no file"):
        load_step(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("no step")
    with pytest.raises(BucketRankError, match="cannot be read"):
        load_step(tmp_path / "text.pth")
    for number, content in enumerate(({"config": "NO_SUCH_KEY: 3"}, {"other": 1}, [1])):
        torch.save(content, tmp_path / f"{number}.pth")
        with pytest.raises(BucketRankError, match="holds no step of training"):
            load_step(tmp_path / f"{number}.pth")


def test_weights_of_another_detector_are_told(tmp_path):
    step = build_step(tmp_path, [[bad_image("a")]], "retinanet_tiny", "brs")
    with pytest.raises(NonFiniteError):
        train(step, 1)
    path = tmp_path / "nan" / "iteration_0000000.pth"
    saved = torch.load(path, weights_only=True)
    del saved["model"]["head.cls_score.bias"]
    torch.save(saved, path)
    with pytest.raises(BucketRankError, match="do not fit the detector"):
        replay(path, "cpu")


@pytest.mark.parametrize(
    ("options", "processes", "message"),
    [
        (("SOLVER.ON_NAN", "go on"), 1, "ON_NAN is 'go on'; it must be one of skip, stop"),
        (("SOLVER.ACCUMULATE", "0"), 1, "ACCUMULATE is 0"),
        (("SOLVER.MAX_SKIPPED", "0"), 1, "MAX_SKIPPED is 0"),
        (("SOLVER.ACCUMULATE", "3", "SOLVER.IMS_PER_BATCH", "6"), 4, "choose a multiple of 12"),
        (("SOLVER.ACCUMULATE", "4", "SOLVER.IMS_PER_BATCH", "6"), 1, "into SOLVER.ACCUMULATE = 4"),
    ],
)
def test_keys_that_cannot_be_honoured_are_told(options, processes, message):
    with pytest.raises(BucketRankError, match=message):
        images_per_process(narrow_config("retinanet_tiny", "brs", *options), processes)


def test_several_processes_agree_and_do_what_one_does(tmp_path):
    found = run_processes(2, train_in_parallel, str(tmp_path))
    for loss in found[0]:
        first, second = (each[loss] for each in found)
        assert torch.equal(first["weights"], second["weights"])
        assert torch.equal(first["average"], second["average"])
        for each in (first, second):
            assert (each["skipped"], each["stopped"]) == (4, 5)
        step = replay(tmp_path / loss / "nan" / "iteration_0000003.pth", "cpu")
        assert step.images == ["3-0.jpg", "bad.jpg", "3-1.jpg", "3-3.jpg"]
        assert math.isnan(sum(step.losses.values()))
    # The parts of one process hold what those of two hold together.
    together = [
        [x for pair in zip(*parts, strict=True) for x in pair] for parts in parallel_batches()
    ]
    one = train_until_it_stops(str(tmp_path / "one"), together, "rs-exact")
    for name in ("weights", "average"):
        torch.testing.assert_close(found[0]["rs-exact"][name], one[name])
    assert (one["skipped"], one["stopped"]) == (4, 5)


def test_float16_gradients_that_overflow_are_the_scalers_business(tmp_path):
    step = build_step(tmp_path, [named_batch("a")] * 20, "retinanet_tiny", "brs")
    step.grad_scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    before = weights_of(step)
    bias = step.model.head.bbox_pred.bias
    overflow = bias.register_hook(lambda grad: grad * torch.inf)
    train(step, 1)
    assert (step.grad_scaler.get_scale(), step.skipped) == (4.0, 0)
    assert torch.equal(bias, before["head.bbox_pred.bias"])
    overflow.remove()
    train(step, 1)
    assert not torch.equal(bias, before["head.bbox_pred.bias"])
    assert step.state_dict()["grad_scaler"]["scale"] == 4.0
    # But it does not go on for ever.
    bias.register_hook(lambda grad: grad * torch.nan)
    with pytest.raises(NonFiniteError, match="gradients of 1 parameters are not"):
        train(step, 4)
    assert step.grad_scaler.get_scale() == 0.5


@pytest.mark.usefixtures("blobs")
def test_a_run_in_parts_and_mixed_precision_resumes_exactly(tmp_path, monkeypatch):
    def config(name):
        options = [
            *NARROW, "SOLVER.MAX_ITER", "6", "SOLVER.CHECKPOINT_PERIOD", "3",
            "SOLVER.ACCUMULATE", "2", "SOLVER.AMP.ENABLED", "True",
        ]  # fmt: skip
        cfg = load_config("retinanet_tiny", loss="alrp-exact", options=options, device="cpu")
        configure_datasets(cfg, "blobs_train", "blobs_val")
        cfg.OUTPUT_DIR, cfg.SEED = str(tmp_path / name), 11
        return cfg

    runs.train(config("whole"))
    step = TrainingStep.run_step

    def killed(self):
        if self.iter == 4:
            raise RuntimeError("power cut")
        step(self)

    monkeypatch.setattr(TrainingStep, "run_step", killed)
    with pytest.raises(RuntimeError, match="power cut"):
        runs.train(config("cut"))
    monkeypatch.undo()
    runs.train(config("cut"), resume=True)
    whole, cut = (
        torch.load(tmp_path / name / "model_final.pth", weights_only=True)["model"]
        for name in ("whole", "cut")
    )
    # One epoch is 12 forward passes of one image each, and so were the 6 steps.
    assert cut["balance.iterations"] == 0
    assert cut["balance.factor"] != FIRST_FACTOR
    for name, value in whole.items():
        assert torch.equal(value, cut[name]), name
