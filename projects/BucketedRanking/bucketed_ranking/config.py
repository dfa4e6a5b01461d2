"""Every config key of this project."""

from detectron2.config import CfgNode

from .errors import BucketRankError
from .losses import LOSS_NAMES, QUALITY_LOSSES

SCORE_LOSS = "score"
EXACT_SCOPE = "global"
"""MODEL.RANKING.SCOPE of the exact losses, where the config leaves it open."""


def add_bucketed_ranking_config(cfg: CfgNode) -> None:
    """Add the keys of this project to a Detectron2 config, with their defaults."""
    cfg.MODEL.RANKING = CfgNode()
    # A name of `bucketed_ranking.losses.LOSS_NAMES`, or "score": the detector's own score-based
    # loss, with Detectron2's own detector; for dense detectors also "qfl", "vfl" or "mal" of
    # `QUALITY_LOSSES`, with the box loss and the recipe of ranking.
    cfg.MODEL.RANKING.LOSS = SCORE_LOSS
    # Half width of the linear ramp of the smoothed step function H, in logits.
    # None: the objective's own, 1.0 for AP and aLRP, 0.5 for RS (the papers' values).
    cfg.MODEL.RANKING.DELTA = None
    # Interpolate the precision of AP. None: as the name says (`ap`, `ap-exact` do, `bap` does not).
    cfg.MODEL.RANKING.INTERPOLATED = None
    # How many logits an exact loss looks at at once, to bound its working memory. None: all.
    cfg.MODEL.RANKING.CHUNK_SIZE = None
    # What one ranking spans where several processes share a batch: "process", the images of each on
    # their own, or "global", those of all, so that losses and gradients are those of one process
    # with the whole batch (but for what a process does to its own images: padding them to the
    # largest, batch normalisation, drawing MAX_MASKS). Exact losses, and qfl, vfl and mal, alone
    # have the choice. None: "global" for them, "process" for all others.
    cfg.MODEL.RANKING.SCOPE = None
    # Scale the box loss to the value of the classification loss: RS in every step, aLRP by averages
    # over an epoch of training, from 50 in the first (the public aLRP code).
    # None: on for RS and aLRP, off for AP (their papers). RankingMaskHead scales its own anyway.
    cfg.MODEL.RANKING.SELF_BALANCE = None
    # Factor on the box loss. None: 1 with SELF_BALANCE, else 2 (AP Loss in the bucketed paper).
    cfg.MODEL.RANKING.BOX_LOSS_WEIGHT = None
    # Factor on all losses of a ranking RPN (RS Loss, Faster R-CNN).
    cfg.MODEL.RANKING.RPN_LOSS_WEIGHT = 0.2
    # How many positives of a process' batch, drawn at random, train a mask head (RS Loss):
    # of each process' own, whatever the SCOPE, so W processes train on W times as many at most.
    cfg.MODEL.RANKING.MAX_MASKS = 200
    # Keys of the whole config and the values that they take when LOSS is a ranking loss: what the
    # ranking recipe of a detector changes in its score-based one. Applied once, by
    # `apply_ranking_recipe`, which empties it.
    cfg.MODEL.RANKING.RECIPE = CfgNode(new_allowed=True)

    # ATSS and PAA are RetinaNets: what is not here stands in MODEL.RETINANET.
    cfg.MODEL.ATSS = CfgNode()
    # Candidates of each level for an object (ATSS, CVPR 2020).
    cfg.MODEL.ATSS.TOPK = 9
    # Factors on the box and centerness losses of the score-based detector (the ATSS code).
    cfg.MODEL.ATSS.BOX_LOSS_WEIGHT = 2.0
    cfg.MODEL.ATSS.QUALITY_LOSS_WEIGHT = 1.0
    cfg.MODEL.PAA = CfgNode()
    # Candidates of each level for an object (PAA, ECCV 2020).
    cfg.MODEL.PAA.TOPK = 9
    # Factors on the box and IoU losses of the score-based detector (PAA).
    cfg.MODEL.PAA.BOX_LOSS_WEIGHT = 1.3
    cfg.MODEL.PAA.QUALITY_LOSS_WEIGHT = 0.5
    # Refine the boxes that NMS leaves by those around them, at no cost in training (PAA).
    cfg.MODEL.PAA.SCORE_VOTING = True

    # Co-DETR and, without AUXILIARY_HEADS, Deformable DETR; all numbers are those of
    # Co-Deformable-DETR (ICCV 2023). Its heads' own settings stand in MODEL.RPN, ROI_HEADS,
    # ROI_BOX_HEAD, RETINANET and ATSS.
    cfg.MODEL.CODETR = CfgNode()
    # Those of the data set, in a training by `bucketrank train`.
    cfg.MODEL.CODETR.NUM_CLASSES = 80
    # Channels of tokens and queries, a multiple of 32, and of the layers' feed-forward parts.
    cfg.MODEL.CODETR.HIDDEN_DIM = 256
    cfg.MODEL.CODETR.FEEDFORWARD_DIM = 2048
    # Layers of either, and heads of their attention.
    cfg.MODEL.CODETR.ENCODER_LAYERS = 6
    cfg.MODEL.CODETR.DECODER_LAYERS = 6
    cfg.MODEL.CODETR.NUM_HEADS = 8
    # Points that each attention head looks at, on each level.
    cfg.MODEL.CODETR.NUM_POINTS = 4
    # Feature maps of the encoder: those of the backbone, and more by halving its last.
    cfg.MODEL.CODETR.NUM_LEVELS = 4
    # Queries of the decoder, each of which finds one object at most.
    cfg.MODEL.CODETR.NUM_QUERIES = 300
    # Costs of giving an object to a query: focal loss, L1 and GIoU of the boxes.
    cfg.MODEL.CODETR.CLASS_COST = 2.0
    cfg.MODEL.CODETR.L1_COST = 5.0
    cfg.MODEL.CODETR.GIOU_COST = 2.0
    # Factors on the losses of every decoder layer, of the encoder and of extra queries. With a
    # ranking loss CLASS_LOSS_WEIGHT is that of the ranking; the others count without SELF_BALANCE.
    cfg.MODEL.CODETR.CLASS_LOSS_WEIGHT = 2.0
    cfg.MODEL.CODETR.L1_LOSS_WEIGHT = 5.0
    cfg.MODEL.CODETR.GIOU_LOSS_WEIGHT = 2.0
    # Which heads learn on the encoder's output: "roi" (RPN and Faster R-CNN) and "atss".
    cfg.MODEL.CODETR.AUXILIARY_HEADS = ["roi", "atss"]
    # Factor on all their losses: number of decoder layers x 2.
    cfg.MODEL.CODETR.AUXILIARY_LOSS_WEIGHT = 12.0
    # Queries that the positives of each head make in an image, at most; 0: no such queries.
    cfg.MODEL.CODETR.MAX_EXTRA_QUERIES = 300
    # The meta-architecture of the ATSS head, and its anchors: sides of one square a location, by
    # level (the encoder's and one more).
    cfg.MODEL.CODETR.ATSS_NAME = "ATSS"
    cfg.MODEL.CODETR.ATSS_ANCHOR_SIZES = [[64], [128], [256], [512], [1024]]

    # Channels of the stages res2..res5 of the small_resnet backbones, and the number of basic
    # blocks in each; the stem has the channels of the first. Neighbouring stages must differ.
    cfg.MODEL.SMALL_RESNET = CfgNode()
    cfg.MODEL.SMALL_RESNET.CHANNELS = [32, 64, 128, 192]
    cfg.MODEL.SMALL_RESNET.BLOCKS = [1, 1, 1, 1]

    # The Swin backbones; the defaults are Swin-T's (Liu et al., ICCV 2021).
    cfg.MODEL.SWIN = CfgNode()
    cfg.MODEL.SWIN.EMBED_DIM = 96
    cfg.MODEL.SWIN.DEPTHS = [2, 2, 6, 2]
    cfg.MODEL.SWIN.NUM_HEADS = [3, 6, 12, 24]
    cfg.MODEL.SWIN.WINDOW_SIZE = 7
    # Stochastic depth: the rate of the last block; it grows linearly from 0 at the first.
    cfg.MODEL.SWIN.DROP_PATH_RATE = 0.2
    # Stages to output, of "p0" (stride 4) to "p3" (stride 32).
    cfg.MODEL.SWIN.OUT_FEATURES = ["p0", "p1", "p2", "p3"]

    # The timm backbones (build_timm_fpn_backbone, build_timm_fpn_p6p7_from_p5_backbone). Their
    # INPUT.FORMAT, MODEL.PIXEL_MEAN and PIXEL_STD are those that timm gives for NAME, unless a
    # config or an option sets another; their features, for MODEL.FPN.IN_FEATURES, are c1 (stride 2)
    # to c5 (stride 32); MODEL.BACKBONE.FREEZE_AT counts them; "timm://NAME" as MODEL.WEIGHTS stands
    # for NAME's ImageNet weights.
    cfg.MODEL.TIMM = CfgNode()
    # A model of timm; with a tag, such as resnet50.a1_in1k, it names its weights too.
    cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"
    # Batch norms as fixed maps, by the statistics and factors of their weights.
    cfg.MODEL.TIMM.FREEZE_BN = False

    # Change training pictures at random, more than Detectron2 by default: a crop of at least half
    # the width and height of every second one, brightness, contrast, saturation; for small data.
    cfg.INPUT.STRONG_AUGMENTATION = False

    # DETR's augmentation: every second picture is scaled to a shortest side of 400, 500 or 600 and
    # cut to a part of 384 to 600 pixels a side, before it is scaled as all are.
    cfg.INPUT.DETR_CROP = False

    # Who gets the rows of metrics.json too: "wandb", "mlflow".
    cfg.LOGGERS = []

    # Factors on the learning rate of the parameters whose names hold a word, for example
    # [["backbone", 0.1]].
    cfg.SOLVER.LR_FACTORS = []
    # "SGD" or "AdamW"; without weight decay on Swin's tables of relative positions.
    cfg.SOLVER.OPTIMIZER = "SGD"
    # How many of the newest checkpoints stay, beside the best and the final one; 0: all.
    cfg.SOLVER.CHECKPOINT_KEEP = 3
    # Run the images of a step in so many parts, one after the other, and take the mean of their
    # gradients: IMS_PER_BATCH, schedule and epochs stay, in the memory of one part. What spans a
    # batch, a ranking and batch normalisation, then spans one part.
    cfg.SOLVER.ACCUMULATE = 1
    # What to do where a loss or gradient is not finite: "stop", or "skip" the update of that step.
    cfg.SOLVER.ON_NAN = "stop"
    # Training stops even so after so many skipped steps in a row.
    cfg.SOLVER.MAX_SKIPPED = 10
    # An exponential moving average of the weights is evaluated and kept in their place; how much of
    # it a step keeps at most, such as 0.9999 (timm's default); 0: no average.
    cfg.SOLVER.EMA_DECAY = 0.0
    # End training after so many evaluations (TEST.EVAL_PERIOD) in a row without a better AP than
    # that of the best checkpoint; 0: never.
    cfg.SOLVER.PATIENCE = 0


def apply_ranking_recipe(cfg: CfgNode) -> None:
    """Merge MODEL.RANKING.RECIPE over the config if a ranking loss is chosen, then empty it.

    Raises:
        BucketRankError: see :func:`ranking_scope`.
    """
    ranking_scope(cfg)
    recipe = cfg.MODEL.RANKING.RECIPE
    cfg.MODEL.RANKING.RECIPE = CfgNode(new_allowed=True)
    if cfg.MODEL.RANKING.LOSS != SCORE_LOSS:
        cfg.merge_from_other_cfg(recipe)


def ranking_scope(cfg: CfgNode) -> str:
    """What one ranking spans, by MODEL.RANKING.SCOPE: "process" or "global".

    Raises:
        BucketRankError: SCOPE is something else, or "global" for a published loss; or LOSS is of
            dense detectors and the detector is not.
    """
    scope, loss = cfg.MODEL.RANKING.SCOPE, cfg.MODEL.RANKING.LOSS
    if scope not in (None, "process", "global"):
        raise BucketRankError(f"MODEL.RANKING.SCOPE is {scope!r}; use process or global.")
    if loss in QUALITY_LOSSES:
        if not cfg.MODEL.META_ARCHITECTURE.endswith(("RetinaNet", "ATSS", "PAA")):
            raise BucketRankError(
                f"MODEL.RANKING.LOSS is {loss!r}, a loss of dense detectors: RetinaNet, "
                "ATSS, PAA; take score or a ranking loss for others."
            )
        return scope or EXACT_SCOPE
    if loss not in LOSS_NAMES:
        return "process"
    objective, algorithm = LOSS_NAMES[loss]
    if algorithm == "exact":
        return scope or EXACT_SCOPE
    if scope == "global":
        raise BucketRankError(
            f"MODEL.RANKING.SCOPE is 'global', but {loss} ranks the images of each process on "
            f"their own; take {objective}-exact, or SCOPE process."
        )
    return "process"
