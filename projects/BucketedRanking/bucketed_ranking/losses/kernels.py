"""The Triton kernels of ``fused``: what a GPU does in one launch each. All tables are float64.

Python's numbers would come as float32, but for the annotation "fp64". What changes from step to
step is not specialised, or kernels would be compiled anew in the middle of a training.
"""

import triton
import triton.language as tl

_SIZES_OF_BINNING = [
    "num_logits", "num_positives", "num_borders", "first_step", "blocks", "copies", "most_units",
]  # fmt: skip


@triton.jit
def _count_borders_below(values, borders, num_borders, first_step, mask, INCLUSIVE: tl.constexpr):
    """How many of the ascending borders lie below each value, or at it if ``INCLUSIVE``."""
    count = tl.zeros_like(values).to(tl.int32)
    step = first_step
    while step > 0:
        candidate = count + step
        valid = mask & (candidate <= num_borders)
        border = tl.load(borders + candidate - 1, mask=valid, other=0.0)
        passed = border <= values if INCLUSIVE else border < values
        count = tl.where(valid & passed, candidate, count)
        step = step // 2
    return count


@triton.jit(do_not_specialize=_SIZES_OF_BINNING)
def bin_logits(
    logits, ignored, positives, borders, sums, poison,
    num_logits, stretch, num_positives, num_borders, first_step,
    blocks, copies, most_units, units: "fp64",
    INCLUSIVE: tl.constexpr, PEELED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add each logit that takes part to its bin of ``sums`` [copies, K + 1, 2]: 1, and its distance
    from the border below in whole units. The last programs take the positives out again. A NaN, and
    a positive that is not finite, makes ``poison`` NaN.

    Many logits fall into few bins, and a device adds to one place one at a time: so programs share
    few copies of the table, and add what falls into their lowest, fullest bins up themselves.
    """
    program = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    place = program.to(tl.int64) * BLOCK + lane
    mask = place < num_logits
    number = (program - blocks).to(tl.int64) * BLOCK + lane
    taken_out = (number >= 0) & (number < num_positives)
    place = tl.where(taken_out, tl.load(positives + number, mask=taken_out, other=0), place)
    mask |= taken_out
    value = tl.load(logits + place, mask=mask, other=0.0).to(tl.float32).to(tl.float64)
    undefined = taken_out & (value - value != 0)
    if ignored is not None:
        mask &= tl.load(ignored + place // stretch, mask=mask, other=0) == 0
    undefined |= mask & (value != value)
    if tl.max(undefined.to(tl.int32), axis=0) > 0:
        tl.store(poison, float("nan"))
    bins = _count_borders_below(value, borders, num_borders, first_step, mask, INCLUSIVE)
    relevant = mask & (bins > 0)
    below = tl.load(borders + bins - 1, mask=relevant, other=0.0)
    # Where no relation rises, the distance may be any: it is not looked at.
    distance = tl.minimum((value - below) * units + 0.5, most_units.to(tl.float64))
    distance = tl.where(relevant, distance, 0.0).to(tl.int64)
    sign = tl.where(program < blocks, 1, -1).to(tl.int64)
    table = sums + (program % copies).to(tl.int64) * (2 * (num_borders + 1))
    for _ in tl.static_range(PEELED):
        lowest = tl.min(tl.where(relevant, bins, num_borders + 1), axis=0)
        same = relevant & (bins == lowest)
        count = tl.sum(same.to(tl.int64), axis=0)
        if count > 0:
            tl.atomic_add(table + 2 * lowest, sign * count, sem="relaxed")
            total = tl.sum(tl.where(same, distance, 0), axis=0)
            tl.atomic_add(table + 2 * lowest + 1, sign * total, sem="relaxed")
        relevant = relevant & (bins != lowest)
    ones = tl.zeros_like(distance) + sign
    tl.atomic_add(table + 2 * bins, ones, mask=relevant, sem="relaxed")
    tl.atomic_add(table + 2 * bins + 1, sign * distance, mask=relevant, sem="relaxed")


@triton.jit(do_not_specialize=["num_bins", "copies"])
def add_copies(sums, weights, offsets, num_bins, copies, unit: "fp64", BLOCK: tl.constexpr):
    """The tables' copies added up: numbers of logits and sums of distances, [K + 1] each."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = column < num_bins
    number = tl.zeros([BLOCK], tl.int64)
    units = tl.zeros([BLOCK], tl.int64)
    for copy in range(copies):
        table = sums + copy * (2 * num_bins)
        number += tl.load(table + 2 * column, mask=mask, other=0)
        units += tl.load(table + 2 * column + 1, mask=mask, other=0)
    tl.store(weights + column, number.to(tl.float64), mask=mask)
    tl.store(offsets + column, units.to(tl.float64) * unit, mask=mask)


@triton.jit
def _rise(left, low, high, per_unit, STEP: tl.constexpr):
    """H(left - s), and whether the relation rises from ``left`` on, where low and high are s -+
    delta."""
    inside = (left >= low) & (left < high)
    height = (left >= high).to(tl.float64)
    if not STEP:  # else low and high are equal, and nothing is inside
        height = tl.where(inside, (left - low) * per_unit, height)
    return height, inside


@triton.jit(do_not_specialize=["num_positives", "num_borders"])
def sum_bins_above(
    borders, weights, offsets, low, high, out, num_positives, num_borders, per_unit: "fp64",
    STEP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """For every positive, the sum of H(x - s_i) over the logits x of a histogram."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    low_i = tl.load(low + row, mask=row < num_positives, other=0.0)[:, None]
    high_i = tl.load(high + row, mask=row < num_positives, other=0.0)[:, None]
    total = tl.zeros([ROWS, COLUMNS], tl.float64)
    for start in range(0, num_borders, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        mask = column < num_borders
        left = tl.load(borders + column, mask=mask, other=0.0)[None, :]
        weight = tl.load(weights + column + 1, mask=mask, other=0.0)[None, :]
        offset = tl.load(offsets + column + 1, mask=mask, other=0.0)[None, :]
        height, inside = _rise(left, low_i, high_i, per_unit, STEP)
        total += weight * height + tl.where(inside, offset * per_unit, 0.0)
    tl.store(out + row, tl.sum(total, axis=1), mask=row < num_positives)


@triton.jit(do_not_specialize=["num_positives", "num_borders"])
def profile_bins(
    borders, low, high, share, base, slope, num_positives, num_borders, per_unit: "fp64",
    STEP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """In each of the K + 1 bins, the mean over the positives of H(x - s_i) share_i as base + slope
    x (distance of x from the border below)."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    valid = (row > 0) & (row <= num_borders)
    left = tl.load(borders + row - 1, mask=valid, other=0.0)[:, None]
    bases = tl.zeros([ROWS, COLUMNS], tl.float64)
    slopes = tl.zeros([ROWS, COLUMNS], tl.float64)
    for start in range(0, num_positives, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        mask = column < num_positives
        low_i = tl.load(low + column, mask=mask, other=0.0)[None, :]
        high_i = tl.load(high + column, mask=mask, other=0.0)[None, :]
        share_i = tl.load(share + column, mask=mask, other=0.0)[None, :]
        height, inside = _rise(left, low_i, high_i, per_unit, STEP)
        bases += height * share_i
        slopes += tl.where(inside, share_i, 0.0)
    mean = tl.where(valid, tl.sum(bases, axis=1) / num_positives, 0.0)
    tl.store(base + row, mean, mask=row <= num_borders)
    mean = tl.where(valid, tl.sum(slopes, axis=1) * per_unit / num_positives, 0.0)
    tl.store(slope + row, mean, mask=row <= num_borders)


@triton.jit(do_not_specialize=["num_points"])
def sum_pairs(
    scores, keys, weights, below, others, num_points, sign,
    delta: "fp64", per_unit: "fp64",
    STEP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """``dominance.dominance_sums`` of scores and keys times ``sign``; a program for each row of
    weights and ROWS points."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    number = tl.program_id(1)
    row_mask = row < num_points
    score = sign * tl.load(scores + row, mask=row_mask, other=0.0)[:, None]
    key = sign * tl.load(keys + row, mask=row_mask, other=0.0)[:, None]
    of_smaller = tl.zeros([ROWS, COLUMNS], tl.float64)
    rest = tl.zeros([ROWS, COLUMNS], tl.float64)
    for start in range(0, num_points, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        mask = column < num_points
        other_score = sign * tl.load(scores + column, mask=mask, other=0.0)[None, :]
        other_key = sign * tl.load(keys + column, mask=mask, other=0.0)[None, :]
        weight = tl.load(weights + number * num_points + column, mask=mask, other=0.0)[None, :]
        if STEP:
            height = (other_score >= score).to(tl.float64)
        else:
            # In this order nothing cancels: small relations keep their relative precision.
            height = ((other_score - score) + delta) * per_unit
            height = tl.minimum(tl.maximum(height, 0.0), 1.0)
        term = height * weight
        smaller = other_key < key
        of_smaller += tl.where(smaller, term, 0.0)
        rest += tl.where(smaller, 0.0, term)
    below += number * num_points
    others += number * num_points
    tl.store(below + row, tl.sum(of_smaller, axis=1), mask=row_mask)
    tl.store(others + row, tl.sum(rest, axis=1), mask=row_mask)


@triton.jit(do_not_specialize=["num_logits", "num_borders", "first_step"])
def write_gradient(
    logits, ignored, borders, base, slope, upstream, grad,
    num_logits, stretch, num_borders, first_step,
    INCLUSIVE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of every logit as a negative: base + slope x distance in its bin, times the
    upstream gradient; 0 for those that take no part."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < num_logits
    mask = inside
    if ignored is not None:
        mask &= tl.load(ignored + place // stretch, mask=inside, other=0) == 0
    value = tl.load(logits + place, mask=mask, other=0.0).to(tl.float32).to(tl.float64)
    bins = _count_borders_below(value, borders, num_borders, first_step, mask, INCLUSIVE)
    mask &= bins > 0
    height = tl.load(base + bins, mask=mask, other=0.0)
    rises = mask & (bins < num_borders)
    below = tl.load(borders + bins - 1, mask=rises, other=0.0)
    rise = tl.load(slope + bins, mask=rises, other=0.0)
    height += rise * tl.where(rises, value - below, 0.0)
    result = height * tl.load(upstream).to(tl.float64)
    tl.store(grad + place, result.to(tl.float32).to(grad.dtype.element_ty), mask=inside)
