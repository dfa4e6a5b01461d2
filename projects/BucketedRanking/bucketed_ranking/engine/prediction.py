"""Detect objects in picture files, videos and cameras; draw them, write them as JSON."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from PIL import Image

from ..data.images import UnreadableImageError, read_picture
from ..errors import BucketRankError
from .detections import as_detections
from .inference import TrainedDetector, detect_batch
from .sources import Source, describe_source, free_name, is_video, name_source
from .video import UnreadableVideoError, VideoReader, VideoWriter

PREDICTIONS = "predictions.json"
T = TypeVar("T")


class Progress(NamedTuple):
    """How far a prediction is after a picture, or a frame of a video."""

    source: Source
    objects: int
    """In this picture."""
    done: int
    """Frames of the video, or pictures."""
    total: int | None
    """Of `done`; None: not known, of cameras, streams and some files."""
    per_second: float
    """Of `done`, since the video or the pictures were begun."""


@dataclass
class Prediction:
    """What a prediction has read and found."""

    folder: Path
    pictures: int = 0
    frames: int = 0
    objects: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    """Files that could not be read, and why."""
    cut_off: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    """Videos that ended early: the frames that were read, and those that there should be; None: of
    a camera or stream, which ended by itself."""
    stopped: bool = False
    """Whether it was asked to stop before everything was read; a camera or stream has no end."""


def find_objects(
    detector: TrainedDetector,
    pictures: Iterable[tuple[Image.Image, T]],
    *,
    score_threshold: float,
    raw_scores: bool = False,
    batch_size: int = 1,
) -> Iterator[tuple[Image.Image, T, Instances]]:
    """Each picture, what comes with it, and its detections from a score on.

    Args:
        raw_scores: see :func:`detect_batch`; `score_threshold` is in the same units.
        batch_size: so many pictures in a row, if they have one size, are looked at together.
    """
    channels = detector.cfg.INPUT.FORMAT
    for _, of_a_size in groupby(pictures, key=lambda each: each[0].size):
        while batch := list(islice(of_a_size, batch_size)):
            images = [convert_PIL_to_numpy(picture, channels) for picture, _ in batch]
            found = detect_batch(detector, images, raw_scores=raw_scores)
            for (picture, rest), instances in zip(batch, found, strict=True):
                yield picture, rest, instances[instances.scores >= score_threshold]


def predict(
    detector: TrainedDetector,
    sources: Sequence[Source],
    output_dir: Path,
    *,
    score_threshold: float,
    raw_scores: bool = False,
    batch_size: int = 1,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> Prediction:
    """Detect objects in pictures and videos, draw them, and write them in COCO's results format.

    Args:
        detector: loaded from a run folder, which has the names of its classes.
        sources: see :func:`find_sources`.
        output_dir: for a PNG of each picture, an MP4 of each video, and predictions.json: a list of
            image_id (counts pictures and frames from 1), file_name, category_id, category, bbox
            (x, y, w, h in pixels), score, of masks segmentation (a run length), and of videos
            frame (from 0) and seconds (since the first).
        raw_scores: see :func:`detect_batch`; `score_threshold` is in the same units.
        batch_size: so many pictures of the same size, or frames, are looked at together.
        stop: asked after each picture or frame whether to end; a video is then closed, to be
            played.

    Raises:
        BucketRankError: `output_dir` has predictions already, there is no such camera or stream, no
            file can be read, or one cannot be written.
    """
    if (output_dir / PREDICTIONS).exists():
        raise BucketRankError(
            f"There are predictions in {output_dir} already; choose another folder with --out."
        )
    sources = list(dict.fromkeys(sources))
    find = partial(
        find_objects, detector, score_threshold=score_threshold, raw_scores=raw_scores,
        batch_size=batch_size,
    )  # fmt: skip
    report = Prediction(output_dir)
    with ExitStack() as stack:
        first = [source for source in sources if not isinstance(source, Path)]
        readers = {source: stack.enter_context(VideoReader(source)) for source in first}
        output_dir.mkdir(parents=True, exist_ok=True)
        add = stack.enter_context(_json_list(output_dir / PREDICTIONS))
        job = _Job(detector, find, report, add, on_progress, stop)
        for videos, group in groupby(sources, is_video):
            for each in group if videos else [list(group)]:
                if stop():
                    report.stopped = True
                elif isinstance(each, list):
                    job.pictures(each)
                else:
                    job.video(each, readers.get(each))
    if len(report.unreadable) == len(sources):
        (output_dir / PREDICTIONS).unlink()  # nothing is in it
        name, reason = next(iter(report.unreadable.items()))
        raise BucketRankError(f"Nothing could be read, such as {name}: {reason}.")
    return report


@dataclass
class _Job:
    """What :func:`predict` does with each source."""

    detector: TrainedDetector
    find: Callable[[Iterable[tuple[Image.Image, T]]], Iterator[tuple[Image.Image, T, Instances]]]
    report: Prediction
    add: Callable[[dict[str, Any]], None]
    on_progress: Callable[[Progress], None]
    stop: Callable[[], bool]

    def pictures(self, paths: Sequence[Path]) -> None:
        begun = time.monotonic()
        found = self.find(self._readable(paths))
        for done, (picture, path, instances) in enumerate(found, start=1):
            self._draw(picture, instances).save(free_name(self.report.folder, path.stem))
            self.report.pictures += 1
            self._write(instances, file_name=str(path))
            self._tell(path, instances, done, len(paths), begun)
            if self.stop() and path != paths[-1]:
                self.report.stopped = True
                break

    def _readable(self, paths: Sequence[Path]) -> Iterator[tuple[Image.Image, Path]]:
        for path in paths:
            try:
                yield read_picture(path), path
            except UnreadableImageError as error:
                self.report.unreadable[str(path)] = str(error)

    def video(self, source: Source, reader: VideoReader | None) -> None:
        """Args: reader: of a camera or stream; a file is opened here."""
        name, begun, done = describe_source(source), time.monotonic(), 0
        try:
            reader = reader or VideoReader(source)
        except UnreadableVideoError as error:
            self.report.unreadable[name] = str(error)
            return
        output = free_name(self.report.folder, name_source(source), ".mp4")
        with reader, VideoWriter(output, reader.fps) as writer:
            found = self.find((picture, seconds) for seconds, picture in reader)
            for done, (picture, seconds, instances) in enumerate(found, start=1):
                writer.write(self._draw(picture, instances), seconds)
                self.report.frames += 1
                self._write(instances, file_name=name, frame=done - 1, seconds=round(seconds, 3))
                self._tell(source, instances, done, reader.total, begun)
                if self.stop():
                    self.report.stopped |= not reader.is_live
                    return
        if not done:
            self.report.unreadable[name] = "not one frame of it can be read"
        elif reader.is_live or (reader.total and done < reader.total - 1):
            # Of some files it is an estimate.
            self.report.cut_off[name] = done, reader.total

    def _draw(self, picture: Image.Image, instances: Instances) -> Image.Image:
        return as_detections(instances, self.detector.record["class_names"], picture).draw()

    def _write(self, instances: Instances, **facts: Any) -> None:
        record, image_id = self.detector.record, self.report.pictures + self.report.frames
        for result in instances_to_coco_json(instances, image_id):
            index = result["category_id"]
            result["category_id"] = record["category_ids"][index]
            self.add({**result, "category": record["class_names"][index], **facts})
        self.report.objects += len(instances)

    def _tell(
        self, source: Source, instances: Instances, done: int, total: int | None, begun: float
    ) -> None:
        speed = done / max(1e-9, time.monotonic() - begun)
        self.on_progress(Progress(source, len(instances), done, total, speed))


@contextmanager
def _json_list(path: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A new JSON file, a list, and what appends an entry to it; complete whatever happens then."""
    with path.open("x") as stream:
        before = "[\n"

        def add(entry: dict[str, Any]) -> None:
            nonlocal before
            stream.write(before + json.dumps(entry))
            before = ",\n"

        try:
            yield add
        finally:
            stream.write("[]\n" if before == "[\n" else "\n]\n")
