"""Names of data sets: adding, finding, overriding, removing, and the errors on the way."""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from bucketed_ranking.data import registry
from bucketed_ranking.errors import BucketRankError

Writer = Callable[..., tuple[Path, Path]]


def _names() -> list[str]:
    return [entry.name for entry in registry.list_datasets()]


@pytest.fixture
def no_shapes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes that the embedded data set was asked for, instead of making it."""
    asked: list[str] = []
    monkeypatch.setattr(registry, "ensure_shapes", lambda: asked.append("shapes"))
    return asked


def test_added_with_absolute_paths_that_people_can_read(
    home: Path, write_coco: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, images = write_coco()
    monkeypatch.chdir(path.parent)
    registry.add_dataset("toy", "annotations.json", "images")
    text = (home / "datasets.yaml").read_text()
    assert yaml.safe_load(text) == {"toy": {"json": str(path), "images": str(images)}}
    entry = registry.find_dataset("toy")
    assert (entry.json, entry.images, entry.origin) == (path, images, "user")
    assert entry.present


def test_added_at_the_same_time_none_is_lost(home: Path, write_coco: Writer) -> None:
    path, images = write_coco()
    names = {f"toy{number}" for number in range(16)}
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(lambda name: registry.add_dataset(name, path, images), names))
    assert names <= set(_names())


def test_validation_json_makes_a_pair(home: Path, write_coco: Writer) -> None:
    train, images = write_coco()
    val, val_images = write_coco(name="other")
    registry.add_dataset("toy", train, images, val_json=val, val_images=val_images)
    assert registry.split_names("toy") == ("toy_train", "toy_val")
    assert [entry.json for entry in registry.members("toy")] == [train, val]


def test_validation_pictures_are_those_of_training_unless_said(
    home: Path, write_coco: Writer
) -> None:
    train, images = write_coco()
    val, _ = write_coco(name="other")
    assert registry.add_dataset("toy", train, images, val_json=val)[1].images == images


def test_fraction_makes_two_parts_of_one_json(home: Path, write_coco: Writer) -> None:
    path, images = write_coco()
    entries = registry.add_dataset("toy", path, images, val_fraction=0.2)
    assert [(e.name, e.part, e.val_fraction) for e in entries] == [
        ("toy_train", "train", 0.2),
        ("toy_val", "val", 0.2),
    ]
    assert {entry.json for entry in entries} == {path}


def test_a_name_is_never_silently_replaced(home: Path, write_coco: Writer) -> None:
    path, images = write_coco()
    other, _ = write_coco(name="other")
    registry.add_dataset("toy", path, images)
    with pytest.raises(BucketRankError, match="--force"):
        registry.add_dataset("toy", other, images)
    assert registry.find_dataset("toy").json == path
    registry.add_dataset("toy", other, images, force=True)
    assert registry.find_dataset("toy").json == other


def test_name_and_pair_of_that_name_exclude_each_other(home: Path, write_coco: Writer) -> None:
    path, images = write_coco()
    registry.add_dataset("toy", path, images)
    with pytest.raises(BucketRankError, match="already is a data set 'toy'"):
        registry.add_dataset("toy", path, images, val_fraction=0.5)
    registry.add_dataset("toy", path, images, val_fraction=0.5, force=True)
    assert "toy" not in _names()
    assert "toy_val" in _names()


def test_other_splits_stand_beside_a_pair(home: Path, write_coco: Writer) -> None:
    path, images = write_coco()
    registry.add_dataset("toy", path, images, val_fraction=0.5)
    registry.add_dataset("toy_test", path, images)
    assert {"toy_train", "toy_val", "toy_test"} <= set(_names())


WRITTEN_BY_HAND = """\
# Our data sets.

# The microscope's.
first:  # since May
  json: /data/first.json   # two spaces more
  images: "/data/a folder"

# Borrowed; ask before use.
'quoted':
  json: a.json  # why
  images: b
  # not the thumbnails

flow: {json: x.json, images: y}  # short
# The last one.
last:
  images: y
  json: x.json
# The end.
"""


@pytest.fixture
def by_hand(home: Path) -> Path:
    home.mkdir()
    file = home / "datasets.yaml"
    file.write_text(WRITTEN_BY_HAND)
    return file


def test_adding_changes_nothing_that_people_wrote(by_hand: Path, write_coco: Writer) -> None:
    path, images = write_coco()
    registry.add_dataset("toy", path, images)
    assert by_hand.read_text() == WRITTEN_BY_HAND + f"toy:\n  json: {path}\n  images: {images}\n"
    registry.remove_dataset("toy")
    assert by_hand.read_text() == WRITTEN_BY_HAND


def test_peoples_indents_stay(by_hand: Path, write_coco: Writer) -> None:
    wide = WRITTEN_BY_HAND.replace("\n  ", "\n    ")
    by_hand.write_text(wide)
    path, images = write_coco()
    registry.add_dataset("toy", path, images)
    assert by_hand.read_text() == wide + f"toy:\n    json: {path}\n    images: {images}\n"


@pytest.mark.parametrize("name", ["first", "quoted", "flow", "last"])
def test_removing_leaves_all_comments_around(by_hand: Path, name: str) -> None:
    registry.remove_dataset(name)
    text = by_hand.read_text()
    assert set(yaml.safe_load(text)) == {"first", "quoted", "flow", "last"} - {name}
    own = {"first": {3, 4, 5}, "quoted": {8, 9, 10}, "flow": {13}, "last": {15, 16, 17}}[name]
    kept = [line for n, line in enumerate(WRITTEN_BY_HAND.splitlines()) if n not in own]
    assert text.splitlines() == kept


def test_removing_and_adding_in_turn_keeps_comments(by_hand: Path, write_coco: Writer) -> None:
    path, images = write_coco()
    for name in ("first", "quoted", "flow", "last"):
        registry.remove_dataset(name)
    registry.add_dataset("toy", path, images, val_fraction=0.5)
    text = by_hand.read_text()
    assert set(yaml.safe_load(text)) == {"toy_train", "toy_val"}
    for comment in ("Our data sets", "The microscope's", "Borrowed", "The last one", "The end"):
        assert text.count(comment) == 1
    assert "{" not in text


def test_a_file_of_comments_alone_keeps_them(home: Path, write_coco: Writer) -> None:
    home.mkdir()
    (home / "datasets.yaml").write_text("# nothing yet\n")
    registry.add_dataset("toy", *write_coco())
    text = (home / "datasets.yaml").read_text()
    assert text.startswith("# nothing yet\n")
    assert set(yaml.safe_load(text)) == {"toy"}


def test_adding_and_removing_work_on_any_yaml_layout(home: Path, write_coco: Writer) -> None:
    home.mkdir()
    file = home / "datasets.yaml"
    file.write_text("{a: {json: a.json, images: d}, 7: {json: b.json, images: d}}\n")
    registry.add_dataset("toy", *write_coco())
    registry.remove_dataset("a")
    registry.remove_dataset("7")
    assert set(yaml.safe_load(file.read_text())) == {"toy"}


def test_removing_a_pair_leaves_its_files(home: Path, write_coco: Writer) -> None:
    path, images = write_coco()
    registry.add_dataset("toy", path, images, val_fraction=0.5)
    assert registry.remove_dataset("toy") == ["toy_train", "toy_val"]
    assert path.is_file()
    assert len(list(images.iterdir())) == 10
    assert "toy_train" not in _names()


def test_project_file_overrides_and_may_be_relative(
    home: Path, write_coco: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, images = write_coco()
    other, _ = write_coco(name="other")
    registry.add_dataset("toy", path, images)
    project = other.parent
    (project / registry.PROJECT_FILE).write_text(
        "toy:\n  json: annotations.json\n  images: ../other/images\n"
    )
    (project / "deep" / "below").mkdir(parents=True)
    monkeypatch.chdir(project / "deep" / "below")
    entry = registry.find_dataset("toy")
    assert (entry.json, entry.images, entry.origin) == (other, project / "images", "project")
    with pytest.raises(BucketRankError, match="change it there"):
        registry.add_dataset("toy", path, images, force=True)
    registry.remove_dataset("toy")
    with pytest.raises(BucketRankError, match="remove it there"):
        registry.remove_dataset("toy")


def test_embedded_splits_are_always_there_and_made_when_asked_for(
    home: Path, no_shapes: list[str]
) -> None:
    assert {"shapes_train", "shapes_val"} <= set(_names())
    assert registry.split_names("shapes") == ("shapes_train", "shapes_val")
    assert no_shapes == []
    assert registry.find_dataset("shapes_val").images == registry.shapes_folder() / "val"
    assert no_shapes == ["shapes"]


def test_detectron2s_own_are_found_in_its_folder(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "coco/annotations").mkdir(parents=True)
    (tmp_path / "coco/val2017").mkdir()
    (tmp_path / "coco/annotations/instances_val2017.json").write_text("{}")
    present = {entry.name: entry.present for entry in registry.list_datasets()}
    assert present["coco_2017_val"]
    assert not present["coco_2017_train"]
    for name in ("coco", "coco_2017"):
        assert registry.split_names(name) == ("coco_2017_train", "coco_2017_val")


def test_unknown_name_names_near_ones_and_how_to_add(home: Path, write_coco: Writer) -> None:
    path, images = write_coco()
    registry.add_dataset("blood", path, images)
    with pytest.raises(BucketRankError, match=r"Did you mean blood\?.*bucketrank dataset add"):
        registry.find_dataset("blod")
    with pytest.raises(BucketRankError, match="Did you mean shapes"):
        registry.split_names("shape")


def test_a_name_without_validation_says_what_to_do(home: Path, write_coco: Writer) -> None:
    path, images = write_coco()
    registry.add_dataset("toy", path, images)
    with pytest.raises(BucketRankError, match=r"--val-fraction.*--train toy --val"):
        registry.split_names("toy")
    registry.add_dataset("half_train", path, images)
    with pytest.raises(BucketRankError, match="no split 'half_val'"):
        registry.split_names("half")


def test_a_split_given_for_its_data_set_is_named(home: Path, write_coco: Writer) -> None:
    path, images = write_coco()
    registry.add_dataset("toy", path, images, val_fraction=0.5)
    with pytest.raises(BucketRankError, match="the data set is called 'toy'"):
        registry.split_names("toy_train")


@pytest.mark.parametrize("name", ["shapes", "shapes_train", "coco", "coco_2017_val"])
def test_built_in_names_are_taken(home: Path, write_coco: Writer, name: str) -> None:
    path, images = write_coco()
    with pytest.raises(BucketRankError, match="built in"):
        registry.add_dataset(name, path, images, force=True)


def test_built_in_names_cannot_be_removed(home: Path, no_shapes: list[str]) -> None:
    with pytest.raises(BucketRankError, match="cannot be removed"):
        registry.remove_dataset("shapes")


@pytest.mark.parametrize("name", ["", "a b", "../up", "a:b", "#x"])
def test_names_that_would_break_files_are_refused(
    home: Path, write_coco: Writer, name: str
) -> None:
    path, images = write_coco()
    with pytest.raises(BucketRankError, match="cannot be a data set's name"):
        registry.add_dataset(name, path, images)


def test_paths_must_exist_and_be_coco(home: Path, write_coco: Writer, tmp_path: Path) -> None:
    path, images = write_coco()
    with pytest.raises(BucketRankError, match="no JSON at"):
        registry.add_dataset("toy", tmp_path / "none.json", images)
    with pytest.raises(BucketRankError, match="no image folder at"):
        registry.add_dataset("toy", path, tmp_path / "none")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(BucketRankError, match="not valid JSON"):
        registry.add_dataset("toy", tmp_path / "bad.json", images)
    (tmp_path / "bad.json").write_text('{"images": [], "annotations": []}')
    with pytest.raises(BucketRankError, match="no list 'categories'"):
        registry.add_dataset("toy", tmp_path / "bad.json", images)
    assert not registry.registry_file().exists()


def test_options_must_agree(home: Path, write_coco: Writer) -> None:
    path, images = write_coco()
    with pytest.raises(BucketRankError, match="not both"):
        registry.add_dataset("toy", path, images, val_json=path, val_fraction=0.1)
    with pytest.raises(BucketRankError, match="needs --val-json"):
        registry.add_dataset("toy", path, images, val_images=images)
    for fraction in (0.0, 1.0, -0.2, 20.0):
        with pytest.raises(BucketRankError, match="between 0 and 1"):
            registry.add_dataset("toy", path, images, val_fraction=fraction)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: [", "not valid YAML"),
        ("- a\n", "must hold entries"),
        ("a: {json: x, images: y}\na: {json: z, images: y}\n", "duplicate key"),
        ("a: text\n", "needs the keys"),
        ("a: {json: x}\n", "needs the keys"),
        ("a: {json: x, images: y, jsn: z}\n", "does not know the key 'jsn'"),
        ("a: {json: x, images: y, part: val}\n", "go together"),
        ("a: {json: x, images: y, part: test, val_fraction: 0.1}\n", "must be train or val"),
        ("a: {json: x, images: y, part: val, val_fraction: 3}\n", "between 0 and 1"),
        ("shapes_val: {json: x, images: y}\n", "built in"),
    ],
)
def test_a_malformed_registry_says_where(home: Path, text: str, complaint: str) -> None:
    home.mkdir()
    (home / "datasets.yaml").write_text(text)
    with pytest.raises(BucketRankError, match=complaint) as caught:
        registry.list_datasets()
    assert str(home / "datasets.yaml") in str(caught.value)


@pytest.fixture
def user_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's home without $BUCKETRANK_HOME and $XDG_*."""
    if sys.platform != "linux":
        pytest.skip("other systems have other folders")
    for variable in ("BUCKETRANK_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_without_bucketrank_home_both_lie_in_the_users_home(user_home: Path) -> None:
    assert registry.registry_file() == user_home / ".config/bucketrank/datasets.yaml"
    assert registry.shapes_folder().parent == user_home / ".cache/bucketrank"


def test_xdg_folders_are_used_but_older_ones_still_found(
    user_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(user_home / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(user_home / "cache"))
    assert registry.registry_file() == user_home / "config/bucketrank/datasets.yaml"
    assert registry.shapes_folder().parent == user_home / "cache/bucketrank"
    (user_home / ".config/bucketrank").mkdir(parents=True)
    (user_home / ".cache/bucketrank").mkdir(parents=True)
    assert registry.registry_file() == user_home / ".config/bucketrank/datasets.yaml"
    assert registry.shapes_folder().parent == user_home / ".cache/bucketrank"
    (user_home / "config/bucketrank").mkdir(parents=True)
    assert registry.registry_file() == user_home / "config/bucketrank/datasets.yaml"
