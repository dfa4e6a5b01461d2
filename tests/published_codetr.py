"""Co-Deformable-DETR as its published code has it: the names and shapes of a checkpoint, and the
forward pass on one picture without padding, written from the papers and plain operators."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Weights = dict[str, Tensor]
RATIOS, OCTAVES = (0.5, 1.0, 2.0), (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
TRANSFORMER = "query_head.transformer"


class Sizes(NamedTuple):
    dim: int = 256
    feedforward: int = 2048
    layers: int = 6
    heads: int = 8
    points: int = 4
    queries: int = 300
    classes: int = 80
    fc: int = 1024
    levels: int = 4


def published_shapes(sizes: Sizes, backbone: nn.Module) -> dict[str, tuple[int, ...]]:
    """By name; `backbone` is a ResNet of torchvision."""
    dim, wide = sizes.dim, 2 * sizes.dim
    samples = sizes.heads * sizes.levels * sizes.points
    shapes = {
        f"backbone.{name}": tuple(value.shape)
        for name, value in backbone.state_dict().items()
        if not name.startswith("fc.")
    }

    def put(name: str, *shape: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = shape
        if bias:
            shapes[f"{name}.bias"] = shape[:1]

    def put_deformable(name: str) -> None:
        put(f"{name}.sampling_offsets", samples * 2, dim)
        put(f"{name}.attention_weights", samples, dim)
        put(f"{name}.value_proj", dim, dim)
        put(f"{name}.output_proj", dim, dim)

    def put_rest(name: str, norms: int) -> None:
        put(f"{name}.ffns.0.layers.0.0", sizes.feedforward, dim)
        put(f"{name}.ffns.0.layers.1", dim, sizes.feedforward)
        for index in range(norms):
            put(f"{name}.norms.{index}", dim)

    channels = [backbone.fc.in_features // 4, backbone.fc.in_features // 2, backbone.fc.in_features]
    for index, count in enumerate(channels):
        put(f"neck.convs.{index}.conv", dim, count, 1, 1, bias=False)
        put(f"neck.convs.{index}.gn", dim)
    put("neck.extra_convs.0.conv", dim, channels[-1], 3, 3, bias=False)
    put("neck.extra_convs.0.gn", dim)
    put("query_head.query_embedding", sizes.queries, dim, bias=False)
    put("query_head.downsample.0", dim, dim, 3, 3)
    put("query_head.downsample.1", dim)
    for index in range(sizes.layers + 1):
        put(f"query_head.cls_branches.{index}", sizes.classes, dim)
        for part, count in ((0, dim), (2, dim), (4, 4)):
            put(f"query_head.reg_branches.{index}.{part}", count, dim)
    shapes[f"{TRANSFORMER}.level_embeds"] = (sizes.levels, dim)
    put(f"{TRANSFORMER}.enc_output", dim, dim)
    put(f"{TRANSFORMER}.enc_output_norm", dim)
    put(f"{TRANSFORMER}.pos_trans", wide, wide)
    put(f"{TRANSFORMER}.pos_trans_norm", wide)
    put(f"{TRANSFORMER}.head_pos_embed", 2, 1, bias=False)
    for head in range(2):
        put(f"{TRANSFORMER}.aux_pos_trans.{head}", wide, wide)
        put(f"{TRANSFORMER}.aux_pos_trans_norm.{head}", wide)
        put(f"{TRANSFORMER}.pos_feats_trans.{head}", dim, dim)
        put(f"{TRANSFORMER}.pos_feats_norm.{head}", dim)
    for index in range(sizes.layers):
        put_deformable(f"{TRANSFORMER}.encoder.layers.{index}.attentions.0")
        put_rest(f"{TRANSFORMER}.encoder.layers.{index}", 2)
        attention = f"{TRANSFORMER}.decoder.layers.{index}.attentions"
        shapes[f"{attention}.0.attn.in_proj_weight"] = (3 * dim, dim)
        shapes[f"{attention}.0.attn.in_proj_bias"] = (3 * dim,)
        put(f"{attention}.0.attn.out_proj", dim, dim)
        put_deformable(f"{attention}.1")
        put_rest(f"{TRANSFORMER}.decoder.layers.{index}", 3)
    put("rpn_head.rpn_conv", dim, dim, 3, 3)
    put("rpn_head.rpn_cls", 9, dim, 1, 1)
    put("rpn_head.rpn_reg", 36, dim, 1, 1)
    put("roi_head.0.bbox_head.shared_fcs.0", sizes.fc, dim * 49)
    put("roi_head.0.bbox_head.shared_fcs.1", sizes.fc, sizes.fc)
    put("roi_head.0.bbox_head.fc_cls", sizes.classes + 1, sizes.fc)
    put("roi_head.0.bbox_head.fc_reg", 4 * sizes.classes, sizes.fc)
    for branch in ("cls_convs", "reg_convs"):
        put(f"bbox_head.0.{branch}.0.conv", dim, dim, 3, 3, bias=False)
        put(f"bbox_head.0.{branch}.0.gn", dim)
    put("bbox_head.0.atss_cls", sizes.classes, dim, 3, 3)
    put("bbox_head.0.atss_reg", 4, dim, 3, 3)
    put("bbox_head.0.atss_centerness", 1, dim, 3, 3)
    for level in range(sizes.levels + 1):
        shapes[f"bbox_head.0.scales.{level}.scale"] = ()
    return shapes


def published_weights(sizes: Sizes, backbone: nn.Module, seed: int = 0) -> Weights:
    """Random, but of a size with which activations neither vanish nor explode."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in published_shapes(sizes, backbone).items():
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.tensor(0)
            continue
        fan_in = math.prod(shape[1:]) if len(shape) > 1 else 100
        weights[name] = torch.randn(shape, generator=generator) / math.sqrt(fan_in)
        if name.endswith(("running_var", "scale")) or (len(shape) == 1 and "weight" in name):
            weights[name] = 1 + 0.3 * weights[name].clamp(-2, 2)
    return weights


class Published:
    """The forward pass of such weights."""

    def __init__(self, weights: Weights, sizes: Sizes, backbone: nn.Module) -> None:
        self.weights, self.sizes = weights, sizes
        own = {k.removeprefix("backbone."): v for k, v in weights.items()}
        backbone.load_state_dict({k: own.get(k, v) for k, v in backbone.state_dict().items()})
        self.backbone = backbone.eval()

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, name: str, x: Tensor) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        return F.layer_norm(x, weight.shape, weight, self.weights[f"{name}.bias"])

    def conv(self, name: str, x: Tensor, **how: int) -> Tensor:
        return F.conv2d(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"), **how)

    def group_norm(self, name: str, x: Tensor) -> Tensor:
        return F.group_norm(x, 32, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def neck(self, image: Tensor) -> list[Tensor]:
        net = self.backbone
        x = net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(image)))))
        maps = []
        for index, stage in enumerate((net.layer2, net.layer3, net.layer4)):
            x = stage(x)
            level = self.conv(f"neck.convs.{index}.conv", x)
            maps.append(self.group_norm(f"neck.convs.{index}.gn", level))
        extra = self.conv("neck.extra_convs.0.conv", x, stride=2, padding=1)
        return [*maps, self.group_norm("neck.extra_convs.0.gn", extra)]

    def encode(self, maps: list[Tensor]) -> list[Tensor]:
        """The maps as the encoder gives them back."""
        shapes = [each.shape[-2:] for each in maps]
        positions, references = [], []
        for level, (height, width) in enumerate(shapes):
            y = (torch.arange(height) + 0.5) / (height + 1e-6) * 2 * math.pi
            x = (torch.arange(width) + 0.5) / (width + 1e-6) * 2 * math.pi
            half = self.sizes.dim // 2
            rows = sines(y, half)[:, None].expand(-1, width, -1)
            columns = sines(x, half)[None].expand(height, -1, -1)
            embed = self.weights[f"{TRANSFORMER}.level_embeds"][level]
            positions.append(torch.cat([rows, columns], dim=2).flatten(0, 1) + embed)
            references.append(centers(height, width))
        position, reference = torch.cat(positions), torch.cat(references)
        tokens = torch.cat([each[0].flatten(1).T for each in maps])
        for index in range(self.sizes.layers):
            name = f"{TRANSFORMER}.encoder.layers.{index}"
            found = self.deformable(
                f"{name}.attentions.0", tokens + position, reference, tokens, shapes
            )
            tokens = self.norm(f"{name}.norms.0", tokens + found)
            tokens = self.norm(f"{name}.norms.1", tokens + self.feedforward(name, tokens))
        parts = tokens.split([height * width for height, width in shapes])
        return [p.T.view(1, -1, *shape) for p, shape in zip(parts, shapes, strict=True)]

    def feedforward(self, name: str, x: Tensor) -> Tensor:
        hidden = self.linear(f"{name}.ffns.0.layers.0.0", x).relu()
        return self.linear(f"{name}.ffns.0.layers.1", hidden)

    def deformable(
        self, name: str, queries: Tensor, references: Tensor, tokens: Tensor, shapes: list
    ) -> Tensor:
        """Samples by their four neighbours; references [Q, 2 or 4], the same on every level."""
        heads, levels, points = self.sizes.heads, self.sizes.levels, self.sizes.points
        offsets = self.linear(f"{name}.sampling_offsets", queries)
        offsets = offsets.view(-1, heads, levels, points, 2)
        weights = self.linear(f"{name}.attention_weights", queries).view(-1, heads, levels * points)
        weights = weights.softmax(2).view(-1, heads, levels, points)
        values = self.linear(f"{name}.value_proj", tokens)
        total = 0
        parts = values.split([height * width for height, width in shapes])
        for level, ((height, width), part) in enumerate(zip(shapes, parts, strict=True)):
            size = torch.tensor([width, height])
            own = offsets[:, :, level]
            if references.shape[1] == 2:
                places = references[:, None, None] + own / size
            else:
                box = references[:, None, None]
                places = box[..., :2] + own / points * box[..., 2:] / 2
            pixels = places * size - 0.5
            corner = pixels.floor()
            own_values = part.view(height * width, heads, -1)
            head = torch.arange(heads).view(1, -1, 1)
            for step in ((0, 0), (0, 1), (1, 0), (1, 1)):
                x, y = (corner + torch.tensor(step)).long().unbind(-1)
                share = (1 - (pixels - corner - torch.tensor(step)).abs()).prod(-1)
                inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
                index = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
                factor = weights[:, :, level] * share * inside
                total = total + (factor[..., None] * own_values[index, head]).sum(2)
        return self.linear(f"{name}.output_proj", total.flatten(1))

    def box_change(self, index: int, x: Tensor) -> Tensor:
        name = f"query_head.reg_branches.{index}"
        x = self.linear(f"{name}.2", self.linear(f"{name}.0", x).relu()).relu()
        return self.linear(f"{name}.4", x)

    def decode(self, memory: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Logits [Q, C] and normalised boxes [Q, 4] of every layer."""
        shapes = [each.shape[-2:] for each in memory]
        tokens = torch.cat([each[0].flatten(1).T for each in memory])
        start = torch.cat(
            [
                torch.cat([centers(*shape), torch.full((shape.numel(), 2), 0.05 * 2**level)], 1)
                for level, shape in enumerate(shapes)
            ]
        )
        assert ((start > 0.01) & (start < 0.99)).all(), "every token may propose"
        proposing = self.linear(f"{TRANSFORMER}.enc_output", tokens)
        proposing = self.norm(f"{TRANSFORMER}.enc_output_norm", proposing)
        last = self.sizes.layers
        scores = self.linear(f"query_head.cls_branches.{last}", proposing)[:, 0]
        proposals = self.box_change(last, proposing) + start.logit()
        boxes = proposals[scores.topk(self.sizes.queries).indices].sigmoid()
        position = self.norm(
            f"{TRANSFORMER}.pos_trans_norm",
            self.linear(f"{TRANSFORMER}.pos_trans", self.box_sines(boxes)),
        )[:, : self.sizes.dim]
        queries, found = self.weights["query_head.query_embedding.weight"], []
        for index in range(last):
            name = f"{TRANSFORMER}.decoder.layers.{index}"
            queries = self.norm(f"{name}.norms.0", queries + self.attend(name, queries, position))
            seen = self.deformable(
                f"{name}.attentions.1", queries + position, boxes, tokens, shapes
            )
            queries = self.norm(f"{name}.norms.1", queries + seen)
            queries = self.norm(f"{name}.norms.2", queries + self.feedforward(name, queries))
            boxes = (self.box_change(index, queries) + boxes.logit(eps=1e-5)).sigmoid()
            found.append((self.linear(f"query_head.cls_branches.{index}", queries), boxes))
        return found

    def box_sines(self, boxes: Tensor) -> Tensor:
        return sines(boxes * 2 * math.pi, self.sizes.dim // 2).flatten(-2)

    def attend(self, name: str, queries: Tensor, position: Tensor) -> Tensor:
        name = f"{name}.attentions.0.attn"
        weight, bias = self.weights[f"{name}.in_proj_weight"], self.weights[f"{name}.in_proj_bias"]
        given = (queries + position, queries + position, queries)
        q, k, v = (
            F.linear(x, w, b).unflatten(1, (self.sizes.heads, -1)).transpose(0, 1)
            for x, w, b in zip(given, weight.chunk(3), bias.chunk(3), strict=True)
        )
        shares = (q @ k.transpose(1, 2) / math.sqrt(q.shape[2])).softmax(2)
        return self.linear(f"{name}.out_proj", (shares @ v).transpose(0, 1).flatten(1))

    def extra_queries(self, head: int, boxes: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Content and position of queries that start from normalised boxes and see a feature."""
        name = f"{TRANSFORMER}.aux_pos_trans"
        both = self.norm(
            f"{name}_norm.{head}", self.linear(f"{name}.{head}", self.box_sines(boxes))
        )
        position, content = both.chunk(2, dim=1)
        feature = self.linear(f"{TRANSFORMER}.pos_feats_trans.{head}", seen)
        content = content + self.norm(f"{TRANSFORMER}.pos_feats_norm.{head}", feature)
        return content, position + self.weights[f"{TRANSFORMER}.head_pos_embed.weight"][head]

    def auxiliary_maps(self, memory: list[Tensor]) -> list[Tensor]:
        more = self.conv("query_head.downsample.0", memory[-1], stride=2, padding=1)
        return [*memory, self.group_norm("query_head.downsample.1", more)]

    def rpn(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits [R] and boxes [R, 4] in pixels of all anchors, those of a location by ratio."""
        logits, boxes = [], []
        for level, each in enumerate(maps):
            x = self.conv("rpn_head.rpn_conv", each, padding=1).relu()
            logits.append(self.conv("rpn_head.rpn_cls", x)[0].permute(1, 2, 0).flatten())
            deltas = self.conv("rpn_head.rpn_reg", x)[0].permute(1, 2, 0).reshape(-1, 9, 4)
            stride = 8 * 2**level
            height, width = each.shape[-2:]
            y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            middle = torch.stack([x, y], dim=2).view(-1, 1, 2) * stride
            base = [
                (4 * stride * octave / math.sqrt(ratio), 4 * stride * octave * math.sqrt(ratio))
                for ratio in RATIOS
                for octave in OCTAVES
            ]
            size = torch.tensor(base)
            middle = middle + deltas[..., :2] * size
            half = size * deltas[..., 2:].exp() / 2
            boxes.append(torch.cat([middle - half, middle + half], dim=2).flatten(0, 1))
        return torch.cat(logits), torch.cat(boxes)

    def atss(self, maps: list[Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Logits, deltas and centerness of each level."""
        found, head = [], "bbox_head.0"
        for level, each in enumerate(maps):
            branches = [
                self.group_norm(
                    f"{head}.{n}.0.gn", self.conv(f"{head}.{n}.0.conv", each, padding=1)
                )
                for n in ("cls_convs", "reg_convs")
            ]
            classes, boxes = (branch.relu() for branch in branches)
            deltas = self.conv(f"{head}.atss_reg", boxes, padding=1)
            logits = self.conv(f"{head}.atss_cls", classes, padding=1)
            center = self.conv(f"{head}.atss_centerness", boxes, padding=1)
            found.append((logits, self.weights[f"{head}.scales.{level}.scale"] * deltas, center))
        return found

    def roi(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [R, C + 1], the background last, and deltas [R, 4 x C] of pooled regions."""
        head = "roi_head.0.bbox_head"
        x = self.linear(f"{head}.shared_fcs.0", pooled.flatten(1)).relu()
        x = self.linear(f"{head}.shared_fcs.1", x).relu()
        return self.linear(f"{head}.fc_cls", x), self.linear(f"{head}.fc_reg", x)


def sines(values: Tensor, channels: int) -> Tensor:
    """Sine and cosine by turns, [..., channels]."""
    found = torch.zeros(*values.shape, channels)
    for index in range(0, channels, 2):
        angle = values / 10000 ** (index / channels)
        found[..., index], found[..., index + 1] = angle.sin(), angle.cos()
    return found


def centers(height: int, width: int) -> Tensor:
    """x and y of each pixel's centre, 0..1, row by row."""
    y = ((torch.arange(height) + 0.5) / height)[:, None].expand(height, width)
    x = ((torch.arange(width) + 0.5) / width)[None].expand(height, width)
    return torch.stack([x, y], dim=2).flatten(0, 1)
