"""Queries that the positives of auxiliary heads make."""

import pytest
import torch

from bucketed_ranking.modeling.codetr.extra_queries import (
    Candidates,
    ExtraQueryEmbedding,
    assigned_to,
    choose_queries,
)

CLASSES = 4


def candidates(positives: int, negatives: int, ignored: int = 0, seed: int = 0) -> Candidates:
    """Rows in a random order; a row's boxes say which row it is."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat(
        [
            torch.arange(positives) % CLASSES,
            torch.full((negatives,), CLASSES),
            torch.full((ignored,), -1),
        ]
    )
    labels = labels[torch.randperm(len(labels), generator=generator)]
    boxes = torch.arange(4.0 * len(labels)).view(-1, 4)
    return Candidates(boxes, labels, boxes + 0.5)


def check_rows(chosen, image, given):
    kept = chosen.labels[image] >= 0
    rows = chosen.rows[image][kept]
    assert len(set(rows.tolist())) == len(rows), "each once"
    assert torch.equal(chosen.boxes[image][kept], given.boxes[rows])
    assert torch.equal(chosen.labels[image][kept], given.labels[rows])
    assert torch.equal(chosen.targets[image][kept], given.targets[rows])


def test_all_positives_come_first_and_negatives_fill_up():
    torch.manual_seed(0)
    given = [candidates(12, 30, 5), candidates(3, 30, 5, seed=1)]
    chosen = choose_queries(given, CLASSES, at_most=20)
    assert chosen.rows.shape == (2, 12), "as many as the image with most positives has"
    for image, each in enumerate(given):
        check_rows(chosen, image, each)
        positives = (each.labels >= 0) & (each.labels < CLASSES)
        count = int(positives.sum())
        assert torch.equal(chosen.rows[image, :count], positives.nonzero().squeeze(1))
        assert (chosen.labels[image, count:] == CLASSES).all()


def test_at_least_nine():
    chosen = choose_queries([candidates(0, 30), candidates(2, 30)], CLASSES, at_most=300)
    assert chosen.rows.shape == (2, 9)
    assert (chosen.labels[0] == CLASSES).all()


def test_too_many_positives_are_drawn_at_random():
    given = [candidates(40, 10), candidates(3, 30)]
    torch.manual_seed(0)
    first, second = (choose_queries(given, CLASSES, at_most=11) for _ in range(2))
    for chosen in (first, second):
        assert chosen.rows.shape == (2, 11)
        assert (chosen.labels[0] < CLASSES).all()
        check_rows(chosen, 0, given[0])
    assert set(first.rows[0].tolist()) != set(second.rows[0].tolist())


def test_too_few_negatives_leave_queries_that_are_ignored():
    given = [candidates(2, 3, 4), Candidates(*(torch.zeros(0, 4),), torch.zeros(0).long(),
             torch.zeros(0, 4))]  # fmt: skip
    chosen = choose_queries(given, CLASSES, at_most=300)
    assert chosen.labels[0].tolist()[2:] == [CLASSES] * 3 + [-1] * 4
    assert chosen.labels[1].tolist() == [-1] * 9
    assert not chosen.boxes[1].any()
    check_rows(chosen, 0, given[0])


def test_targets_are_the_heads_own_for_every_layer():
    chosen = choose_queries([candidates(2, 10), candidates(1, 10)], CLASSES, at_most=300)
    assigned = assigned_to(chosen, [(100, 200), (50, 50)], CLASSES, layers=3)
    assert assigned.labels.shape == (3, 18)
    assert torch.equal(assigned.labels[2], chosen.labels.flatten())
    assert assigned.positives.tolist() == [[0, 1, 9]] * 3
    x0, y0, x1, y1 = chosen.targets[1, 0].tolist()
    expected = torch.tensor([x0 + x1, y0 + y1, 2 * (x1 - x0), 2 * (y1 - y0)]) / 100
    torch.testing.assert_close(assigned.boxes[1, 2], expected)


@pytest.mark.parametrize("box", [[0.5, 0.5, 0.2, 0.2], [-0.2, 1.4, 2.0, 0.0]])
def test_the_embedding_adds_the_feature_to_the_content_and_an_offset_to_the_position(box):
    torch.manual_seed(0)
    embedding = ExtraQueryEmbedding(8)
    boxes, features = torch.tensor(box).view(1, 1, 4), torch.randn(1, 1, 8)
    content, position = embedding(boxes, features)
    place, of_box = embedding.boxes(boxes.clamp(1e-5, 1 - 1e-5))
    torch.testing.assert_close(position, place + embedding.offset, rtol=1e-4, atol=1e-4)
    of_feature = embedding.feature_norm(embedding.feature_linear(features))
    torch.testing.assert_close(content, of_box + of_feature, rtol=1e-4, atol=1e-4)
