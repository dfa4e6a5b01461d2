"""The transformer: padding, proposals, refinement of boxes, gradients between layers."""

import pytest
import torch

from bucketed_ranking.modeling.codetr.query_head import QueryHead

DIM, CLASSES = 32, 5
PADDED = (64, 96)
STRIDES = (8, 16, 32)


@pytest.fixture(scope="module")
def head() -> QueryHead:
    torch.manual_seed(0)
    head = QueryHead(
        num_classes=CLASSES, dim=DIM, feedforward_dim=32, levels=3, heads=4, points=2,
        encoder_layers=2, decoder_layers=3, queries=12,
    ).double()  # fmt: skip
    for name, parameter in head.named_parameters():
        if "branches" in name or "attention" in name:  # as after some training
            torch.nn.init.normal_(parameter, std=0.2)
    return head


def features_of(sizes, padded, seed=1):
    """The images' own features, and noise where there is no image."""
    generator = torch.Generator().manual_seed(seed)
    levels = []
    for stride in STRIDES:
        shape = (len(sizes), DIM, padded[0] // stride, padded[1] // stride)
        level = 50 * torch.randn(shape, dtype=torch.float64, generator=generator)
        for row, (height, width) in zip(level, sizes, strict=True):
            own = torch.Generator().manual_seed(stride + height + 1000 * width)
            part = row[:, : height // stride, : width // stride]
            part.copy_(torch.randn(part.shape, dtype=torch.float64, generator=own))
        levels.append(level)
    return levels


def run(head, sizes, padded):
    memory = head.encode(features_of(sizes, padded), sizes, padded)
    proposed, usable = head.propose(memory)
    return memory, proposed, usable, head.decode_best(proposed, usable, memory)


def test_images_of_different_sizes_find_what_each_finds_alone(head):
    sizes = [(64, 96), (32, 64), (64, 32)]
    with torch.no_grad():
        _, proposed, usable, found = run(head, sizes, PADDED)
        for image, size in enumerate(sizes):
            _, own_proposed, own_usable, own = run(head, [size], size)
            torch.testing.assert_close(found.logits[:, image], own.logits[:, 0])
            torch.testing.assert_close(found.boxes[:, image], own.boxes[:, 0])
            for all_tokens, own_tokens in zip(proposed, own_proposed, strict=True):
                torch.testing.assert_close(
                    all_tokens[0, image, usable[image]], own_tokens[0, 0, own_usable[0]]
                )


def test_queries_start_from_the_best_usable_tokens(head):
    sizes = [(64, 96), (32, 64)]
    with torch.no_grad():
        memory, proposed, usable, found = run(head, sizes, PADDED)
        best = proposed.logits[0, :, :, 0].masked_fill(~usable, -1e9).topk(12).indices
        boxes = torch.stack([proposed.boxes[0, i, rows] for i, rows in enumerate(best)])
        position, _ = head.box_embedding(boxes)
        content = head.query_embedding.weight.expand(2, -1, -1)
        expected = head.decode(content, position, boxes, memory)
    torch.testing.assert_close(found.boxes, expected.boxes)
    torch.testing.assert_close(found.logits, expected.logits)


def test_a_proposal_is_a_tokens_box_moved_by_the_last_branch(head):
    memory = head.encode(features_of([PADDED], PADDED), [PADDED], PADDED)
    branch = head.box_branches[-1][-1]
    before = branch.weight.detach().clone(), branch.bias.detach().clone()
    with torch.no_grad():
        branch.weight.zero_()
        branch.bias.copy_(torch.tensor([0.0, 0.0, 1.0, 0.0]))
        proposed, _ = head.propose(memory)
        branch.weight.copy_(before[0])
        branch.bias.copy_(before[1])
    start = torch.tensor([0.05, 0.05], dtype=torch.float64).logit()
    expected = (start + torch.tensor([1.0, 0.0])).sigmoid()
    torch.testing.assert_close(proposed.boxes[0, 0, 0, 2:], expected)
    torch.testing.assert_close(proposed.boxes[0, 0, 0, :2], torch.tensor([4 / 96, 4 / 64]).double())


def test_fewer_tokens_than_queries(head):
    memory = head.encode(features_of([(32, 32)], (32, 32)), [(32, 32)], (32, 32))
    small = head.query_embedding
    head.query_embedding = torch.nn.Embedding(40, DIM).double()
    proposed, usable = head.propose(memory)
    found = head.decode_best(proposed, usable, memory)
    head.query_embedding = small
    assert found.logits.shape == (3, 1, 21, CLASSES), "16 + 4 + 1 tokens"
    assert found.boxes.isfinite().all()


def layer_gradients(head, layer, what="boxes"):
    """Which layers' box branches the predictions of one layer train."""
    memory = head.encode(features_of([PADDED], PADDED), [PADDED], PADDED)
    proposed, usable = head.propose(memory)
    head.zero_grad()
    getattr(head.decode_best(proposed, usable, memory), what)[layer].sum().backward()
    return [branch[-1].bias.grad is not None and bool(branch[-1].bias.grad.any())
            for branch in head.box_branches]  # fmt: skip


def test_a_layers_boxes_train_its_branch_and_the_one_before(head):
    """Look forward twice; no further back, and not the encoder's, whose boxes are detached."""
    assert layer_gradients(head, 0) == [True, False, False, False]
    assert layer_gradients(head, 1) == [True, True, False, False]
    assert layer_gradients(head, 2) == [False, True, True, False]


def test_scores_train_no_box_branch(head):
    assert layer_gradients(head, 2, "logits") == [False] * 4


def test_the_decoder_trains_the_encoder(head):
    memory = head.encode(features_of([PADDED], PADDED), [PADDED], PADDED)
    proposed, usable = head.propose(memory)
    head.zero_grad()
    head.decode_best(proposed, usable, memory).logits.sum().backward()
    assert head.encoder.level_embeds.grad.any()
    assert head.memory_linear.weight.grad is None, "which tokens are chosen is not learned by it"
