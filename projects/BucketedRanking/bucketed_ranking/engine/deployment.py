"""A detector as one function of a picture, which can be traced and runs without this package."""

import numpy as np
import torch
from detectron2.layers import shapes_to_tensor
from detectron2.modeling.postprocessing import detector_postprocess
from torch import Tensor, nn

from ..errors import BucketRankError
from .inference import TrainedDetector


class DeployedDetector(nn.Module):
    """What `predict` does with a picture, its resizing and its calibration too, as one module.

    Takes a picture as PIL has it, RGB, uint8 [H, W, 3], and gives, by falling score, the tensors of
    :attr:`outputs`: boxes, float32 [N, 4], (x0, y0, x1, y1) in pixels of the picture; scores,
    float64 [N]; classes, int64 [N]; and from a detector of masks masks, bool [N, H, W].
    """

    def __init__(self, detector: TrainedDetector):
        """
        Raises:
            BucketRankError: the detector takes no pictures in colour.
        """
        super().__init__()
        sizes = detector.cfg.INPUT
        if sizes.FORMAT not in ("RGB", "BGR"):
            raise BucketRankError(
                f"A detector of pictures in {sizes.FORMAT} (INPUT.FORMAT) cannot be exported, only "
                "one of RGB or BGR."
            )
        self.model = detector.model
        self.flip = sizes.FORMAT == "BGR"
        self.shortest, self.longest = sizes.MIN_SIZE_TEST, sizes.MAX_SIZE_TEST
        self.outputs = ["boxes", "scores", "classes"]
        if detector.cfg.MODEL.MASK_ON:
            self.outputs.append("masks")
        knots = values = np.array([0.0, 1.0])
        if detector.calibration:
            knots, values = detector.calibration.score_map.as_knots()
        self.register_buffer("knots", torch.from_numpy(knots))
        self.register_buffer("values", torch.from_numpy(values))

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:
        height, width = picture.shape[:2]
        resized = picture.flip(2) if self.flip else picture
        if self.shortest:
            size = resized_shape(picture, self.shortest, self.longest)
            resized = resize_bilinear(resized, size[0], size[1])
        image = resized.permute(2, 0, 1).float()
        inputs = {"image": image, "height": height, "width": width}
        masks: tuple[Tensor, ...] = ()
        if "masks" in self.outputs:
            found = self.model.inference([inputs], do_postprocess=False)[0]
            # By another name: those in the picture are made below, of any number, none too.
            found.probabilities = found.pred_masks[:, 0]
            found.remove("pred_masks")
            found = detector_postprocess(found, height, width)
            masks = (paste_masks(found.probabilities, found.pred_boxes.tensor, height, width),)
        else:
            found = self.model([inputs])[0]["instances"]
        scores = interpolate(found.scores.double(), self.knots, self.values)
        return (found.pred_boxes.tensor, scores, found.pred_classes, *masks)


def interpolate(x: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """:func:`numpy.interp` for x [N] between the first and the last of the knots [K]."""
    right = (x[:, None] >= knots).sum(dim=1).clamp(1, len(knots) - 1)
    left = right - 1
    slope = (values[right] - values[left]) / (knots[right] - knots[left])
    return values[left] + (x - knots[left]) * slope


def resized_shape(picture: Tensor, shortest: int, longest: int) -> Tensor:
    """Height and width, int64 [2], to which :class:`ResizeShortestEdge` brings [H, W, 3]."""
    size = shapes_to_tensor(list(picture.shape[:2])).double()
    # Tensors [1]: a number divided by a tensor is multiplied by its rounded reciprocal, and ONNX
    # gets float32 for tensors without dimensions.
    short, long = size.new_tensor([shortest]), size.new_tensor([longest])
    smaller = size.amin(dim=0, keepdim=True)
    resized = torch.where(size == smaller, short, size * (short / smaller))
    return (resized * (long / resized.amax(dim=0, keepdim=True)).clamp(max=1) + 0.5).long()


@torch.jit.script_if_tracing
def resize_bilinear(picture: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """The bilinear resizing of Pillow 13, to the last bit: uint8 [H, W, C] -> int32 [h, w, C]."""
    if picture.shape[0] - int(height) > max(0, 2 * (picture.shape[1] - int(width))):
        shrunk = _resize_rows(picture, height).transpose(0, 1)
        resized = _resize_rows(shrunk.contiguous(), width).transpose(0, 1)
    else:
        across = _resize_rows(picture.transpose(0, 1).contiguous(), width).transpose(0, 1)
        resized = _resize_rows(across.contiguous(), height)
    return resized


@torch.jit.script_if_tracing
def _resize_rows(pixels: Tensor, size: Tensor) -> Tensor:
    one, half = 1 << 22, 1 << 21  # Pillow's weights are whole numbers of 2^-22
    rows = pixels.shape[0]
    scale = torch.full([1], rows, dtype=torch.double) / size[None].double()
    reach = scale.clamp(min=1)
    centers = (torch.arange(int(size)).double() + 0.5) * scale
    first = (centers - reach + 0.5).long().clamp(min=0)
    end = (centers + reach + 0.5).long().clamp(max=rows)
    taps = int((2 * reach.ceil() + 1).long().max())
    index = first + torch.arange(taps)[:, None]
    weights = (1 - ((index - centers + 0.5) / reach).abs()).clamp(min=0) * (index < end)
    weights = (weights / weights.sum(dim=0) * one + 0.5).int()[:, :, None, None]
    index = index.clamp(max=rows - 1)
    total = pixels.index_select(0, index[0]).int() * weights[0] + half
    for tap in range(1, taps):
        total = total + pixels.index_select(0, index[tap]).int() * weights[tap]
    return torch.div(total, one, rounding_mode="floor")


def paste_masks(masks: Tensor, boxes: Tensor, height: int | Tensor, width: int | Tensor) -> Tensor:
    """Masks of boxes as masks of the picture, as Detectron2 pastes them.

    Args:
        masks: [N, M, M], probabilities.
        boxes: [N, 4], (x0, y0, x1, y1) in pixels.

    Returns:
        bool [N, height, width]; float32 of that shape is what it takes in between.
    """
    cells = masks.shape[-1]
    down = _weights_of_cells(boxes[:, 1], boxes[:, 3], height, cells)
    across = _weights_of_cells(boxes[:, 0], boxes[:, 2], width, cells)
    return down @ masks @ across.transpose(1, 2) >= 0.5


def _weights_of_cells(start: Tensor, end: Tensor, size: int | Tensor, cells: int) -> Tensor:
    """Bilinear weights [N, size, cells] of cells that lie between start [N] and end [N]."""
    pixels = torch.arange(size).float() + 0.5
    positions = (pixels - start[:, None]) / (end - start)[:, None] * cells - 0.5
    return (1 - (positions[:, :, None] - torch.arange(cells)).abs()).clamp(min=0)
