"""Which files are read as pictures."""

import pytest

from bucketed_ranking.engine.picture_files import list_images
from bucketed_ranking.errors import BucketRankError


def test_a_folder_stands_for_the_pictures_in_it(tmp_path):
    for name in ("b.jpg", "a.PNG", "notes.txt"):
        (tmp_path / name).touch()
    assert list_images([tmp_path]) == [tmp_path / "a.PNG", tmp_path / "b.jpg"]


@pytest.mark.parametrize("missing", ["none.jpg", "empty"])
def test_missing_pictures_are_told(tmp_path, missing):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BucketRankError, match=r"There (is|are) no picture"):
        list_images([tmp_path / missing])
