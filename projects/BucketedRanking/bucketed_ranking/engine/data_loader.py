"""Training batches that depend on the seed and the iteration alone.

With Detectron2's loader, a resumed run sees other images than an uninterrupted one: its stream
starts anew, and augmentations are drawn by the workers. Here every image's augmentation is seeded
by its place in the stream.
"""

import itertools
import logging
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, DatasetMapper, get_detection_dataset_dicts
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from ..data.catalog import lacks_mask
from ..errors import BucketRankError
from .augmentation import crops, training_augmentations
from .image_workers import fork_workers
from .mapper import UNREADABLE, PictureMapper

logger = logging.getLogger(__name__)


class TrainingBatches(Sampler):
    """Endless batches of (position in the stream, image index), without the first `start`.

    Args:
        stream: image indices in training order; the same each time it is iterated.
        groups: [number of images]; a batch holds images of one group only.
    """

    def __init__(
        self, stream: Iterable[int], groups: Sequence[int], batch_size: int, start: int = 0
    ):
        self.stream, self.groups, self.batch_size, self.start = stream, groups, batch_size, start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return itertools.islice(self._batches(), self.start, None)

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        pending: dict[int, list[tuple[int, int]]] = defaultdict(list)
        # Each process takes every n-th index of one stream; an image is known by its place in that.
        positions = itertools.count(comm.get_rank(), comm.get_world_size())
        for position, index in zip(positions, self.stream, strict=False):
            batch = pending[self.groups[index]]
            batch.append((position, index))
            if len(batch) == self.batch_size:
                yield pending.pop(self.groups[index])


class TrainingImages(Dataset):
    """Mapped training images; an unreadable one is replaced by the next that can be read.

    A replacement carries the names of the files it stands for under "unreadable". Where none can be
    read there is nothing else: workers of a loader cannot hand on an error without a traceback.
    """

    def __init__(self, dataset_dicts: Sequence[dict], mapper: Callable[[dict], dict], seed: int):
        self.dataset_dicts, self.mapper, self.seed = dataset_dicts, mapper, seed

    def __len__(self) -> int:
        return len(self.dataset_dicts)

    def __getitem__(self, item: tuple[int, int]) -> dict:
        position, index = item
        unreadable: list[str] = []
        with torch.random.fork_rng(devices=[]):
            _seed_generators(self.seed, position)
            for offset in range(len(self)):
                dataset_dict = self.dataset_dicts[(index + offset) % len(self)]
                try:
                    return {**self.mapper(dataset_dict), "unreadable": unreadable}
                except UNREADABLE as error:
                    logger.warning("Skipped %s: %s", dataset_dict["file_name"], error)
                    unreadable.append(dataset_dict["file_name"])
        return {"unreadable": unreadable}


def _seed_generators(seed: int, position: int) -> None:
    state = np.random.SeedSequence([seed, position]).generate_state(3)
    random.seed(int(state[0]))
    np.random.seed(int(state[1]))
    torch.manual_seed(int(state[2]))


class TrainingLoader:
    """Batches of mapped images; remembers which image files could not be read.

    Raises:
        BucketRankError: none can be.
    """

    def __init__(self, loader: DataLoader):
        self.loader = loader
        self.unreadable: set[str] = set()

    def __iter__(self) -> Iterator[list[dict]]:
        for batch in self.loader:
            for image in batch:
                self.unreadable.update(unreadable := image.pop("unreadable"))
                if not image:
                    raise BucketRankError(
                        f"None of the {len(unreadable)} training images can be read, for example "
                        f"{unreadable[0]}; `bucketrank dataset check` lists what is wrong with "
                        "them."
                    )
            yield batch


def images_per_process(cfg: CfgNode, processes: int) -> int:
    """How many images of a batch each process has; BucketRankError if it does not divide over them,
    and into SOLVER.ACCUMULATE parts."""
    batch, parts = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATE
    if batch % (processes * parts):
        over = [f"over {processes} processes"] if processes > 1 else []
        into = [f"into SOLVER.ACCUMULATE = {parts} parts"] if parts > 1 else []
        raise BucketRankError(
            f"SOLVER.IMS_PER_BATCH is {batch}, which does not divide {' and '.join(over + into)}; "
            f"choose a multiple of {processes * parts}."
        )
    return batch // processes


def build_train_loader(cfg: CfgNode, start: int = 0) -> TrainingLoader:
    """The loader of cfg.DATASETS.TRAIN, starting at iteration `start`; cfg.SEED must be set.

    Honours the DATALOADER and INPUT keys of Detectron2's own loader; of its samplers,
    TrainingSampler and RepeatFactorTrainingSampler.

    Raises:
        BucketRankError: see :func:`images_per_process`, or an unknown sampler.
    """
    batch_size = images_per_process(cfg, comm.get_world_size())
    dicts = get_detection_dataset_dicts(
        cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    )
    grouped = cfg.DATALOADER.ASPECT_RATIO_GROUPING
    _as_floats(dicts)
    groups = [int(grouped and d["width"] > d["height"]) for d in dicts]
    batches = TrainingBatches(_build_stream(cfg, dicts), groups, batch_size, start)
    mapper = PictureMapper(
        cfg,
        is_train=True,
        augmentations=training_augmentations(cfg),
        recompute_boxes=cfg.MODEL.MASK_ON and crops(cfg),
    )
    if cfg.MODEL.MASK_ON:
        _prepare_masks(dicts, mapper)
    loader = DataLoader(
        TrainingImages(DatasetFromList(dicts, copy=False), mapper, cfg.SEED),
        batch_sampler=batches,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
        # Its own, so that starting the loader draws nothing from the training's generator.
        generator=torch.Generator().manual_seed(cfg.SEED),
    )
    fork_workers(loader)
    return TrainingLoader(loader)


def _as_floats(dicts: list[dict]) -> None:
    """Makes coordinates floats: Detectron2's resizing cuts the fraction of those that are whole."""
    for annotation in (annotation for d in dicts for annotation in d["annotations"]):
        annotation["bbox"] = [float(value) for value in annotation["bbox"]]
        if isinstance(polygons := annotation.get("segmentation"), list):
            annotation["segmentation"] = [[float(v) for v in polygon] for polygon in polygons]


def _prepare_masks(dicts: list[dict], mapper: DatasetMapper) -> None:
    """Makes crowds of objects without a mask, and bitmaps of masks that are not all polygons."""
    objects = [a for d in dicts for a in d["annotations"] if not a.get("iscrowd")]
    for annotation in filter(lacks_mask, objects):
        annotation["iscrowd"] = 1
    if any(isinstance(annotation.get("segmentation"), dict) for annotation in objects):
        mapper.instance_mask_format = "bitmask"


def _build_stream(cfg: CfgNode, dicts: list[dict]) -> Iterable[int]:
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name == "TrainingSampler":
        return TrainingSampler(len(dicts), seed=cfg.SEED)
    if name == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dicts, cfg.DATALOADER.REPEAT_THRESHOLD
        )
        return RepeatFactorTrainingSampler(factors, seed=cfg.SEED)
    raise BucketRankError(
        f"DATALOADER.SAMPLER_TRAIN is {name!r}; use TrainingSampler or RepeatFactorTrainingSampler."
    )
