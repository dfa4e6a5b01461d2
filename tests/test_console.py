import math

import pytest

from bucketed_ranking.console import number


@pytest.mark.parametrize(("value", "shown"), [(39.46, "39.5 s"), (None, "-"), (math.nan, "-")])
def test_numbers_that_are_not_known_are_dashes(value, shown):
    assert number(value, 1, " s") == shown
