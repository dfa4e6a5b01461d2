"""Write a trained detector as an ONNX or TorchScript file that is checked before it is kept."""

import io
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from detectron2.export import TracingAdapter

from ..data.files import atomic_file
from ..environment import installed_version
from ..errors import BucketRankError
from .deployment import DeployedDetector
from .export import check_path
from .export_check import Agreement, Found, agreement, check_pictures
from .inference import TrainedDetector, best_threshold

# RoiAlign as Detectron2 has it came with 16; later ones are read by fewer programs.
OPSET = 17


def export_traced(
    detector: TrainedDetector,
    path: Path,
    format: Literal["onnx", "torchscript"],
    image_size: tuple[int, int] | None = None,
) -> Agreement | None:
    """Write a detector as one function of a picture, :class:`DeployedDetector`.

    The file has its metadata (:func:`file_metadata`) as ONNX's metadata_props, or as TorchScript's
    extra file metadata.json. It is written when it finds in three pictures what the detector does.

    Args:
        detector: on the CPU.
        image_size: height and width of the only pictures that it takes, which are not resized then;
            None: it takes pictures of any size, and resizes them as `predict` does.

    Returns:
        How close the file is to the detector; None: onnxruntime, which tells, is not installed.

    Raises:
        BucketRankError: there is a file already; onnx is not installed; the detector has parts that
            the format does not; the file would find something else.
    """
    check_path(path, format)
    if format == "onnx" and find_spec("onnx") is None:
        raise BucketRankError(
            "Exporting to ONNX needs onnx, which is not installed; install it with `pip install "
            "onnx onnxruntime`, or export with --format torchscript."
        )
    name = detector.cfg.MODEL.META_ARCHITECTURE
    if name == "CoDETR":
        raise BucketRankError(
            "Co-DETR cannot be exported as onnx or torchscript: its attention computes with the "
            "size of a picture in ways that a trace does not keep; --format safetensors has its "
            "weights."
        )
    if image_size:
        cfg = detector.cfg.clone()
        cfg.INPUT.MIN_SIZE_TEST = 0  # Detectron2's word for no resizing
        detector = replace(detector, cfg=cfg)
    metadata = file_metadata(detector, image_size)
    pictures = check_pictures(detector, image_size)
    deployed = DeployedDetector(detector).eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tracing: the check below tells
            traced = _trace(deployed, pictures[0])
            if format == "torchscript":
                content = _torchscript(traced, metadata)
            else:
                content = _onnx(traced, pictures[0], deployed.outputs, metadata, bool(image_size))
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise BucketRankError(f"{name} cannot be exported as {format}: {reason}") from error
    run = _torchscript_runner(content) if format == "torchscript" else _onnx_runner(content)
    checked = agreement(detector, run, pictures) if run else None
    with atomic_file(path) as file:
        file.write(content)
    return checked


def file_metadata(detector: TrainedDetector, image_size: tuple[int, int] | None) -> dict[str, str]:
    """What a program must know to use the file; lists and null are JSON."""
    sizes = detector.cfg.INPUT
    resized = None if image_size else [sizes.MIN_SIZE_TEST, sizes.MAX_SIZE_TEST]
    masks = "; masks, bool [N, height, width]" if detector.cfg.MODEL.MASK_ON else ""
    return {
        "class_names": json.dumps(detector.record.get("class_names")),
        # A little below: it is the score of a detection, which rounding must not leave out.
        "score_threshold": repr(0.9999 * best_threshold(detector)),
        "calibrated": json.dumps(detector.calibration is not None),
        "input": "picture: uint8 [height, width, 3], RGB",
        "image_size": json.dumps(image_size),
        "resized_to_shortest_and_longest": json.dumps(resized),
        "outputs": "boxes, float32 [N, 4], x0 y0 x1 y1 in pixels of the picture; scores, float64 "
        f"[N], falling; classes, int64 [N], indices of class_names{masks}",
        "iterations": json.dumps(detector.iterations),
        "bucketrank": str(installed_version("bucketrank")),
        "torch": str(installed_version("torch")),
    }


def _trace(deployed: DeployedDetector, picture: np.ndarray) -> torch.jit.ScriptModule:
    example = (torch.from_numpy(picture),)
    # Detectron2's: makes it keep numbers of boxes as tensors.
    return torch.jit.trace(TracingAdapter(deployed, example).eval(), example, check_trace=False)


def _torchscript(traced: torch.jit.ScriptModule, metadata: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer, _extra_files={"metadata.json": json.dumps(metadata)})
    return buffer.getvalue()


def _torchscript_runner(content: bytes) -> Callable[[np.ndarray], Found]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is old
        module = torch.jit.load(io.BytesIO(content))

    def run(picture: np.ndarray) -> Found:
        with torch.no_grad():
            return [output.numpy() for output in module(torch.from_numpy(picture))]

    return run


def _onnx(
    traced: torch.jit.ScriptModule,
    picture: np.ndarray,
    outputs: list[str],
    metadata: dict[str, str],
    fixed: bool,
) -> bytes:
    import onnx

    buffer = io.BytesIO()
    axes = {name: {0: "detections"} for name in outputs}
    if not fixed:
        axes |= {"picture": {0: "height", 1: "width"}}
        if "masks" in outputs:
            axes["masks"] |= {1: "height", 2: "width"}
    torch.onnx.export(
        traced,
        (torch.from_numpy(picture),),
        buffer,
        dynamo=False,  # torch.export refuses what Detectron2 asks of numbers of boxes
        opset_version=OPSET,
        input_names=["picture"],
        output_names=outputs,
        dynamic_axes=axes,
    )
    model = onnx.load_from_string(buffer.getvalue())
    onnx.helper.set_model_props(model, metadata)
    return model.SerializeToString()


def _onnx_runner(content: bytes) -> Callable[[np.ndarray], Found] | None:
    if find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(picture: np.ndarray) -> Found:
        try:
            return session.run(None, {"picture": picture})
        except Exception as error:  # its own have no class in common
            raise RuntimeError(str(error)) from error

    return run
