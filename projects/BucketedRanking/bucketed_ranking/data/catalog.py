"""Makes data sets known to Detectron2 by name; the one module of ``data`` that needs Detectron2."""

import logging
import sys
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from faster_coco_eval import COCO

from ..errors import BucketRankError
from .coco import DatasetInfo, clean_dataset
from .entries import DatasetEntry
from .files import read_coco
from .formats import changed_source
from .registry import find_dataset, list_datasets

logger = logging.getLogger("bucketed_ranking.data")

# Installed without their own dependencies: cityscapesscripts asks for a package named typing.
_CITYSCAPES_TOOLS = ("cityscapesscripts", "pyquaternion", "shapely")
_ADDRESSES = {
    "coco": "https://cocodataset.org",
    "lvis": "https://www.lvisdataset.org (its pictures are COCO's)",
    "cityscapes_instance": "https://www.cityscapes-dataset.com",
}


def register(name: str, remembered: DatasetEntry | None = None) -> DatasetInfo:
    """Registers a data set with Detectron2's catalogs under its name and describes it.

    What users registered is cleaned first, and Detectron2 gets the clean JSON: a degenerate box
    or an unreadable picture is skipped with a warning that counts it. Detectron2's own data sets
    keep their registration. Calling it again is cheap, unless the files have changed.

    Args:
        name: see :func:`find_dataset`.
        remembered: where its files are, should the name not be registered any more.

    Raises:
        BucketRankError: if the name is unknown, files are absent, or nothing usable is left.
    """
    known = remembered is None or any(entry.name == name for entry in list_datasets())
    entry = find_dataset(name) if known else remembered
    if entry.origin == "detectron2":
        return _describe_builtin(entry)
    if (source := changed_source(entry)) is not None:
        logger.warning(
            f"Data set '{name}': the labels in {source} have changed or gone since they were added "
            "and are taken as they were; `bucketrank dataset add` with --force reads them anew"
        )
    info = clean_dataset(entry)
    if _add_to_catalogs(info) and info.skipped:
        counts = ", ".join(f"{count} {reason}" for reason, count in info.skipped.items())
        logger.warning(
            f"Data set '{name}': skipped {counts} (`bucketrank dataset check {name}` shows which)"
        )
    return info


def require_same_classes(train: DatasetInfo, val: DatasetInfo) -> None:
    """Refuses to train on one list of classes and evaluate on another.

    Raises:
        BucketRankError: names the first class that differs.
    """
    if train.class_names == val.class_names:
        return
    difference = f"{train.num_classes} against {val.num_classes} classes"
    if train.num_classes == val.num_classes:
        pairs = zip(train.class_names, val.class_names, strict=True)
        index, (ours, theirs) = next((i, p) for i, p in enumerate(pairs) if p[0] != p[1])
        difference = f"class {index} is '{ours}' in the first and '{theirs}' in the second"
    raise BucketRankError(
        f"Data sets '{train.name}' and '{val.name}' differ in their classes: {difference}. Give "
        "both JSON files the same categories, with names in the same order of ids."
    )


def lacks_mask(annotation: dict[str, Any]) -> bool:
    """Whether an annotation of one object, in COCO's or Detectron2's format, has no mask."""
    return not annotation.get("iscrowd") and not annotation.get("segmentation")


def require_masks(info: DatasetInfo) -> None:
    """Refuses to learn or measure masks on a registered data set that has few or none.

    Where at least half of the objects have one, the others are counted in a warning; training
    and evaluation treat them as crowds.

    Raises:
        BucketRankError: says how many masks are missing, and what to do.
    """
    if info.has_masks:
        return
    objects = [a for a in read_coco(info.json)["annotations"] if not a.get("iscrowd")]
    missing = sum(map(lacks_mask, objects))
    if 2 * missing > len(objects) or not objects:
        raise BucketRankError(
            f"{missing} of the {len(objects)} objects of data set '{info.name}' have no mask, but "
            "this detector learns masks: give the annotations in its JSON a 'segmentation', or "
            "take a detector of boxes (MODEL.MASK_ON False)."
        )
    logger.warning(
        f"Data set '{info.name}': {missing} of the {len(objects)} objects have no mask; they are "
        "taken for crowds, neither learnt nor counted"
    )


def _add_to_catalogs(info: DatasetInfo) -> bool:
    """Returns whether it was new, or registered with another JSON before."""
    if info.name in DatasetCatalog:
        if MetadataCatalog.get(info.name).get("json_file") == str(info.json):
            return False
        DatasetCatalog.remove(info.name)
        MetadataCatalog.remove(info.name)
    # Given here, not only found when the JSON is loaded, so that prediction has them too.
    indices = {category: index for index, category in enumerate(info.category_ids)}
    metadata = {
        "thing_classes": info.class_names,
        "thing_dataset_id_to_contiguous_id": indices,
    }
    register_coco_instances(info.name, metadata, str(info.json), str(info.images))
    return True


def category_ids(name: str) -> list[int]:
    """The ids that a registered data set's own files have for its classes, by class index.

    Where its metadata has none they count from 1, as LVIS' do.
    """
    metadata = MetadataCatalog.get(name)
    indices = metadata.get("thing_dataset_id_to_contiguous_id")
    if indices is None:
        return list(range(1, len(metadata.thing_classes) + 1))
    return sorted(indices, key=indices.__getitem__)


def _describe_builtin(entry: DatasetEntry) -> DatasetInfo:
    metadata = MetadataCatalog.get(entry.name)
    kind = metadata.evaluator_type
    if not entry.present:
        raise BucketRankError(
            f"The files of '{entry.name}' are absent: Detectron2 expects {entry.json} and the "
            f"pictures in {entry.images} (set DETECTRON2_DATASETS to change where); they come from "
            f"{_ADDRESSES[kind]}."
        )
    if kind == "cityscapes_instance":
        missing = [package for package in _CITYSCAPES_TOOLS if find_spec(package) is None]
        if missing:
            raise BucketRankError(
                f"'{entry.name}' needs what is not installed: {', '.join(missing)}; `make setup` "
                "in a checkout of bucketrank installs it, or `pip install --no-deps "
                f"{' '.join(missing)}`."
            )
        return _describe_cityscapes(entry)
    if kind == "lvis":
        _make_lvis_importable()
    info = replace(clean_dataset(entry), evaluator=kind)
    # Detectron2 names LVIS' classes by their first synonym, whatever the JSON calls them.
    return replace(info, class_names=metadata.thing_classes) if kind == "lvis" else info


@lru_cache
def _describe_cityscapes(entry: DatasetEntry) -> DatasetInfo:
    """Reads it once; Detectron2 itself reads it again for each evaluation.

    It does so in processes that it ends with SIGTERM; within a training, which catches that
    signal, they would not end.
    """
    if next(entry.json.glob("*/*_gtFine_polygons.json"), None) is None:
        raise BucketRankError(
            f"There are no annotations of '{entry.name}' in {entry.json}: expected "
            "CITY/CITY_..._gtFine_polygons.json there (gtFine_trainvaltest.zip)."
        )
    _make_cityscapes_importable()
    records = DatasetCatalog.get(entry.name)
    DatasetCatalog.remove(entry.name)
    DatasetCatalog.register(entry.name, lambda: list(records))
    return DatasetInfo(
        name=entry.name,
        json=entry.json,
        images=entry.images,
        category_ids=category_ids(entry.name),
        class_names=MetadataCatalog.get(entry.name).thing_classes,
        num_images=len(records),
        num_annotations=sum(len(record["annotations"]) for record in records),
        has_masks=True,
        evaluator="cityscapes_instance",
    )


def _make_cityscapes_importable() -> None:
    """Makes the public package importable under the name of Meta's own, which Detectron2 uses."""
    inner = "deeplearning.projects.cityscapesApi"
    package = import_module("cityscapesscripts")
    root = SimpleNamespace(
        projects=SimpleNamespace(cityscapesApi=SimpleNamespace(cityscapesscripts=package))
    )
    sys.modules.setdefault("deeplearning", root)
    for module in ("helpers.labels", "evaluation.evalInstanceLevelSemanticLabeling"):
        name = f"cityscapesscripts.{module}"
        sys.modules.setdefault(f"{inner}.{name}", import_module(name))


def _make_lvis_importable() -> None:
    """Detectron2 reads LVIS by a class of the package lvis; faster-coco-eval has an equal one."""
    if "lvis" not in sys.modules and find_spec("lvis") is None:
        sys.modules["lvis"] = SimpleNamespace(LVIS=COCO)
