"""Which cells a table has."""

from dataclasses import replace

import pytest

pytest.importorskip("detectron2", reason="detectron2 is not installed")


from bucketed_ranking.benchmarks.cells import (
    DEFAULT_LOSSES,
    EMBEDDED_ITERATIONS,
    is_tiny,
    plan,
)
from bucketed_ranking.engine import run_folder, setup
from bucketed_ranking.errors import BucketRankError
from bucketed_ranking.published import PUBLISHED
from bucketed_ranking.zoo import available_configs


def cell_config(cell):
    """The config that the cell's command trains."""
    cfg = setup.load_config(cell.config, loss=cell.loss, options=cell.options, device=cell.device)
    setup.configure_datasets(cfg, *setup.choose_datasets(cfg, cell.dataset, None, None))
    return cfg


def plan_brs(output, dataset, **how):
    return plan(
        output, **{"dataset": dataset, "detectors": ("retinanet_tiny",), "losses": ("brs",), **how}
    )


def test_by_default_two_tiny_detectors_with_every_loss_on_the_embedded_data(tmp_path):
    cells = plan(tmp_path)
    assert [(cell.config, cell.loss) for cell in cells] == [
        (config, loss)
        for config in ("retinanet_tiny", "faster_rcnn_tiny")
        for loss in DEFAULT_LOSSES
    ]
    assert {(cell.dataset, cell.seed, cell.max_iter) for cell in cells} == {
        ("shapes", 1, EMBEDDED_ITERATIONS)
    }
    assert len({cell.config_hash for cell in cells}) == len({cell.folder for cell in cells}) == 12
    assert all(cell.obstacle is None for cell in cells)


def test_seeds_share_a_config_and_have_folders_of_their_own(tmp_path, blobs):
    first, second = plan_brs(tmp_path, blobs, seeds=(1, 2))
    assert first.config_hash == second.config_hash
    assert first.folder != second.folder
    assert first.max_iter == setup.load_config("retinanet_tiny", device="cpu").SOLVER.MAX_ITER


def test_processes_that_share_a_batch_change_the_ranking_and_the_hash(tmp_path, blobs):
    one, two, three = (plan_brs(tmp_path, blobs, processes=count)[0] for count in (1, 2, 3))
    assert (one.images_per_ranking, two.images_per_ranking) == (8, 4)
    assert one.config_hash != two.config_hash
    assert one.config_hash == run_folder.config_hash(cell_config(one))
    assert "8 does not divide over 3 processes" in three.obstacle


def test_options_of_the_user_win_and_curves_have_points(tmp_path, blobs):
    options = ("SOLVER.MAX_ITER", "30", "SOLVER.BASE_LR", "0.5")
    (cell,) = plan_brs(tmp_path, blobs, options=options)
    cfg = cell_config(cell)
    assert (cell.max_iter, cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR) == (30, 30, 0.5)
    assert 0 < cfg.TEST.EVAL_PERIOD < 30
    (own,) = plan_brs(tmp_path, blobs, options=("TEST.EVAL_PERIOD", "0"))
    assert cell_config(own).TEST.EVAL_PERIOD == 0


def test_variants_stand_beside_the_cells_without_them(tmp_path, blobs):
    variants = {
        "fixed": ["MODEL.RANKING.SELF_BALANCE", "False"],
        "slow": ["SOLVER.BASE_LR", "0.001", "MODEL.RANKING.DELTA", "1.0"],
    }
    cells = plan_brs(tmp_path, blobs, losses=("score", "brs"), variants=variants, seeds=(1, 2))
    found = [(cell.loss, cell.variant) for cell in cells if cell.seed == 2]
    # The detector's own loss has no row of a variant that does not change it.
    assert found == [
        ("score", ""), ("score", "slow"), ("brs", ""), ("brs", "fixed"), ("brs", "slow"),
    ]  # fmt: skip
    assert len({cell.folder for cell in cells}) == len(cells) == 10
    assert len({cell.config_hash for cell in cells}) == 5
    (fixed,) = [cell for cell in cells if cell.variant == "fixed" and cell.seed == 1]
    assert cell_config(fixed).MODEL.RANKING.SELF_BALANCE is False
    assert fixed.name == "retinanet_tiny-brs-fixed-seed1"


def test_a_cell_is_an_ordinary_training_command(tmp_path, blobs):
    (cell,) = plan_brs(tmp_path, blobs, seeds=(3,))
    words = replace(cell, processes=4).arguments()
    assert words[:2] == ["train", "retinanet_tiny"]
    for option, value in {
        "--loss": "brs", "--seed": "3", "--dataset": blobs, "--output": str(cell.folder),
        "--num-processes": "4",
    }.items():  # fmt: skip
        assert words[words.index(option) + 1] == value
    assert "--profile" in words
    assert "--num-processes" not in cell.arguments()
    assert cell.job().startswith("bucketrank train retinanet_tiny ")


def test_detectors_by_pattern(tmp_path, blobs):
    cells = plan_brs(tmp_path, blobs, detectors=("*_tiny",))
    tiny = {name for name in available_configs() if is_tiny(name)}
    assert {cell.config for cell in cells} == tiny


def test_a_data_set_of_full_size_detectors_gets_those(tmp_path):
    cells = plan(tmp_path, dataset="coco", losses=("brs",), device="cpu")
    configs = [cell.config for cell in cells]
    assert {"retinanet_R_50_FPN_1x", "faster_rcnn_R_50_FPN_1x"} <= set(configs)
    assert not any(map(is_tiny, configs))
    # COCO is not on the machine of a test.
    assert all("coco_2017_train" in cell.obstacle for cell in cells)


def test_the_paper_profile_has_the_rows_of_the_paper_and_no_others(tmp_path):
    cells = plan(tmp_path, paper=True, device="cpu")
    assert [(cell.config, cell.loss) for cell in cells] == [(r.config, r.loss) for r in PUBLISHED]
    by_four = plan(tmp_path, paper=True, device="cpu", processes=4)
    assert {cell.images_per_ranking for cell in by_four} == {4}
    thresholds = {cell.options[1] for cell in cells if "SCORE_THRESH_TEST" in "".join(cell.options)}
    assert thresholds == {"0.4", "0.6"}
    narrowed = plan(tmp_path, detectors=("paa*",), paper=True, device="cpu")
    assert [cell.loss for cell in narrowed] == ["ap", "bap", "rs", "brs"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"losses": ("bsr",)}, "no loss called 'bsr'"),
        ({"detectors": ("retinanet_tinny",)}, "did you mean retinanet_tiny"),
        ({"options": ("SOLVER.MAX_ITERS", "4")}, "did you mean SOLVER.MAX_ITER"),
        ({"paper": True, "losses": ("alrp",)}, "No row of the paper's table"),
    ],
)
def test_what_is_not_there(tmp_path, arguments, sentence):
    with pytest.raises(BucketRankError, match=sentence):
        plan(tmp_path, **arguments)
