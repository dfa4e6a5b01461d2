"""Configs by name, losses, recipes, options: what the user asks for is what runs."""

import json

import pytest
from detectron2.config import get_cfg

from bucketed_ranking.config import add_bucketed_ranking_config
from bucketed_ranking.data.registry import add_dataset, find_dataset
from bucketed_ranking.engine import setup
from bucketed_ranking.errors import BucketRankError
from bucketed_ranking.zoo import available_configs, find_config

RANKING_KEYS = {
    "retinanet_R_50_FPN_1x": ("RankingRetinaNet", (10.0, 10.0, 5.0, 5.0), 0.008),
    "atss_R_50_FPN_1x": ("RankingATSS", (10.0, 10.0, 5.0, 5.0), 0.008),
    "paa_R_50_FPN_1x": ("RankingPAA", (10.0, 10.0, 5.0, 5.0), 0.008),
    "faster_rcnn_R_50_FPN_1x": ("GeneralizedRCNN", (10.0, 10.0, 5.0, 5.0), 0.012),
    "mask_rcnn_R_50_FPN_1x": ("GeneralizedRCNN", (10.0, 10.0, 5.0, 5.0), 0.012),
    "cascade_mask_rcnn_R_50_FPN_1x": ("GeneralizedRCNN", (10.0, 10.0, 5.0, 5.0), 0.012),
}


@pytest.mark.parametrize("name", sorted(available_configs()))
def test_every_shipped_config_loads_with_every_kind_of_loss(name):
    for loss in ("score", "brs", "ap-exact"):
        cfg = setup.load_config(name, loss=loss, device="cpu")
        assert loss == cfg.MODEL.RANKING.LOSS
        assert not cfg.MODEL.RANKING.RECIPE, "the recipe is applied once and emptied"


# Co-DETR knows no threshold: it gives its best queries, whatever they score.
@pytest.mark.parametrize("name", sorted(n for n in available_configs() if "detr" not in n))
def test_ranked_detections_are_cut_off_by_no_score_but_on_lvis(name):
    cfg = setup.load_config(name, loss="brs", device="cpu")
    two_stage = cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN"
    head = cfg.MODEL.ROI_HEADS if two_stage else cfg.MODEL.RETINANET
    assert (0.05 if "LVIS" in name else 0.0) == head.SCORE_THRESH_TEST


@pytest.mark.parametrize("name", RANKING_KEYS)
def test_recipes_of_the_papers_apply_to_ranking_losses_only(name):
    architecture, coder, learning_rate = RANKING_KEYS[name]
    ranking = setup.load_config(name, loss="brs", device="cpu")
    assert architecture == ranking.MODEL.META_ARCHITECTURE
    assert learning_rate == ranking.SOLVER.BASE_LR
    key = "RPN" if "rcnn" in name else "RETINANET"
    assert tuple(ranking.MODEL[key].BBOX_REG_WEIGHTS) == coder
    score = setup.load_config(name, loss="score", device="cpu")
    assert architecture.removeprefix("Ranking") == score.MODEL.META_ARCHITECTURE
    assert score.MODEL.PROPOSAL_GENERATOR.NAME == "RPN"


def test_the_weight_of_a_ranking_rpn_is_the_papers_on_coco_and_1_in_short_schedules():
    for name, path in available_configs().items():
        cfg = setup.load_config(name, loss="brs", device="cpu")
        if "rcnn" in name:
            small = path.parent.name in ("Tiny", "Light")
            assert (1.0 if small else 0.2) == cfg.MODEL.RANKING.RPN_LOSS_WEIGHT, name


@pytest.mark.parametrize(
    "name", sorted(RANKING_KEYS.keys() - {"atss_R_50_FPN_1x", "paa_R_50_FPN_1x"})
)
def test_score_is_the_model_zoos_own_config(name):
    from detectron2 import model_zoo

    folder = "Misc" if "cascade" in name else find_config(name).parent.name
    zoo = get_cfg()
    zoo.merge_from_file(model_zoo.get_config_file(f"{folder}/{name}.yaml"))
    ours = setup.load_config(name, loss="score", device="cpu")
    for section in ("MODEL", "SOLVER", "INPUT", "DATALOADER", "TEST"):
        # The keys that this project adds, and the device of this machine.
        ours_only = setup.default_config()[section].keys() - zoo[section].keys() | {"DEVICE"}
        expected, found = (
            {k: v for k, v in each[section].items() if k not in ours_only} for each in (zoo, ours)
        )
        assert found == expected, section


def test_the_stages_of_a_cascade_share_the_box_coder_of_the_recipe():
    cfg = setup.load_config("cascade_rcnn_R_50_FPN_1x", loss="brs", device="cpu")
    assert list(cfg.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS) == [[10.0, 10.0, 5.0, 5.0]] * 3
    assert cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS == (0.5, 0.6, 0.7)
    assert cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN == 1000


def test_user_options_win_over_the_recipe():
    cfg = setup.load_config(
        "retinanet_R_50_FPN_1x", loss="brs", device="cpu", options=["SOLVER.BASE_LR", "0.5"]
    )
    assert cfg.SOLVER.BASE_LR == 0.5


def test_the_loss_may_be_named_among_the_options():
    options = ["MODEL.RANKING.LOSS", "bap"]
    cfg = setup.load_config("retinanet_tiny", device="cpu", options=options)
    assert cfg.MODEL.META_ARCHITECTURE == "RankingRetinaNet"
    assert cfg.MODEL.RANKING.LOSS == "bap"


def test_a_config_file_of_the_users_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("MODEL:\n  META_ARCHITECTURE: RetinaNet\n")
    assert setup.load_config(str(path), device="cpu").MODEL.META_ARCHITECTURE == "RetinaNet"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"config": "retinanet_tyni"}, "did you mean retinanet_tiny"),
        ({"loss": "brss"}, "no loss called 'brss'; choose one of score, ap"),
        ({"options": ["SOLVER.BASE_LR"]}, "pairs KEY VALUE"),
        ({"options": ["SOLVER.BASELR", "1"]}, "did you mean SOLVER.BASE_LR"),
        ({"options": ["SOLVER.MAX_ITER", "many"]}, "SOLVER.MAX_ITER cannot take 'many'"),
        ({"options": ["SOLVER.MAX_ITER", "0"]}, "SOLVER.MAX_ITER is 0; it must be 1 or more"),
        ({"options": ["SOLVER.IMS_PER_BATCH", "0"]}, "IMS_PER_BATCH is 0; it must be 1 or more"),
        ({"options": ["SOLVER.CHECKPOINT_PERIOD", "0"]}, "CHECKPOINT_PERIOD is 0"),
        (
            {"options": ["SOLVER.BASE_LR", "1e999"]},
            "SOLVER.BASE_LR is inf; it must be 1e-12 or more",
        ),
        ({"options": ["SOLVER.MOMENTUM", "1.5"]}, "SOLVER.MOMENTUM is 1.5; it must be from 0 to 1"),
        ({"options": ["SEED", str(10**23)]}, "SEED is 1000.*; it must be from -1 to 2147483647"),
        ({"options": ["INPUT.MIN_SIZE_TRAIN", "(64, -1)"]}, "INPUT.MIN_SIZE_TRAIN is -1"),
        ({"options": ["MODEL.META_ARCHITECTURE", "YOLO"]}, "one of .*RankingRetinaNet"),
        ({"options": ["SOLVER.WARMUP_METHOD", "slow"]}, "it must be one of constant, linear"),
        ({"options": ["MODEL", "3"]}, "MODEL cannot take '3'"),
        ({"options": ["MODEL.RPN", "[" * 5000]}, r"MODEL\.RPN cannot take"),
        ({"device": "cuda:97"}, "'cuda:97' cannot be used here"),
        ({"device": "abacus"}, "'abacus' cannot be used here"),
    ],
)
def test_what_a_user_gets_wrong_is_told_in_a_sentence(arguments, message):
    with pytest.raises(BucketRankError, match=message):
        setup.load_config(**{"config": "retinanet_tiny", "device": "cpu", **arguments})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL:\n  NO_SUCH_KEY: 1\n", "cannot be read: Non-existent config key"),
        ("", "holds no keys, such as MODEL"),
        ("- 1\n- 2\n", "holds no keys"),
        ("3", "holds no keys"),
        ("MODEL: 3", "has MODEL: 3, a key without keys"),
        ("MODEL:\n  RPN: 3", "cannot be read: Type mismatch"),
        ("_BASE_: bad.yaml", "is its own _BASE_"),
        ("_BASE_: none.yaml", "No such file"),
        ("_BASE_: 5", "cannot be read"),
        ("1: 2", "cannot be read"),
        ("[" * 3000, "nested too deeply"),
        ("\0", "cannot be read"),
        ("MODEL:\n  RANKING:\n    LOSS: brs\n    RECIPE: {MODEL: {NOPE: 3}}", "does not fit.*NOPE"),
    ],
)
def test_a_malformed_config_file_is_told(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(BucketRankError, match=message) as told:
        setup.load_config(str(path), device="cpu")
    assert "bad.yaml" in str(told.value)
    assert len(str(told.value)) < 400 + len(str(path))


def test_a_config_file_cannot_run_code(tmp_path):
    path = tmp_path / "evil.yaml"
    path.write_text("OUTPUT_DIR: !!python/object/apply:os.getcwd []")
    with pytest.raises(BucketRankError, match=r"evil\.yaml cannot be read"):
        setup.load_config(str(path), device="cpu")


def test_number_of_classes_comes_from_the_data_set(blobs):
    cfg = get_cfg()
    add_bucketed_ranking_config(cfg)
    info, _ = setup.configure_datasets(cfg, *setup.choose_datasets(cfg, blobs, None, None))
    assert info.class_names == ["red", "green", "blue"]
    assert cfg.MODEL.RETINANET.NUM_CLASSES == cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3
    assert cfg.DATASETS.TRAIN == ("blobs_train",)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("blobs", "blobs_train", None), "not both"),
        ((None, "blobs_train", None), "go together"),
        ((None, None, None), r"DATASETS\.TRAIN is \(\)"),
    ],
)
def test_contradicting_data_sets_are_told(blobs, names, message):
    cfg = get_cfg()
    with pytest.raises(BucketRankError, match=message):
        setup.choose_datasets(cfg, *names)


@pytest.mark.parametrize("names", [(), ("blobs_train", "blobs_val")])
def test_a_training_has_one_data_set_of_each_kind(names):
    cfg = setup.load_config("retinanet_tiny", device="cpu")
    assert setup.choose_datasets(cfg, None, None, None) == ("shapes_train", "shapes_val")
    for key in ("TRAIN", "TEST"):
        other = cfg.clone()
        other.DATASETS[key] = names
        with pytest.raises(BucketRankError, match=rf"DATASETS\.{key} is .*--train and --val"):
            setup.choose_datasets(other, None, None, None)


def masks_left(blobs, tmp_path, kept: int):
    """The names of splits with `kept` masks in the training split."""
    entry = find_dataset(f"{blobs}_train")
    content = json.loads(entry.json.read_text())
    for annotation in content["annotations"][kept:]:
        del annotation["segmentation"]
    (tmp_path / "masks.json").write_text(json.dumps(content))
    add_dataset("masks_left", tmp_path / "masks.json", entry.images, force=True)
    return "masks_left", f"{blobs}_val"


def test_masks_cannot_be_learnt_from_boxes_alone(blobs, tmp_path):
    names = masks_left(blobs, tmp_path, kept=3)
    cfg = setup.load_config("mask_rcnn_tiny", device="cpu")
    with pytest.raises(BucketRankError, match="33 of the 36 objects of data set 'masks_left'"):
        setup.configure_datasets(cfg, *names)
    with pytest.raises(BucketRankError, match=r"MODEL\.MASK_ON False"):
        setup.configure_datasets(cfg, *reversed(names))
    setup.configure_datasets(setup.load_config("faster_rcnn_tiny", device="cpu"), *names)


def test_a_few_missing_masks_are_counted(blobs, tmp_path, caplog):
    names = masks_left(blobs, tmp_path, kept=34)
    setup.configure_datasets(setup.load_config("mask_rcnn_tiny", device="cpu"), *names)
    assert "'masks_left': 2 of the 36 objects have no mask" in caplog.text
