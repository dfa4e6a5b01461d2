"""The pages of the documentation: every block of their code runs as it stands, in a page's order.

A comment before a block says what else is needed: `<!-- not run: WHY -->`, or `<!-- run with: WORDS
-->` for words that are added to its `bucketrank train`, so that a training takes two steps.
"""

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from markdown_it import MarkdownIt
from typer.testing import CliRunner

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from detectron2.config import CfgNode, get_cfg

from bucketed_ranking.config import add_bucketed_ranking_config
from bucketed_ranking.data import shapes
from bucketrank_cli.main import app
from tests.coco_blobs import write_blobs
from tests.conftest import REPOSITORY

# Not the results: their commands take hours, and each page says when they were run.
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
MARK = re.compile(r"<!-- (not run|run with): (.+) -->\s*")


class Block(NamedTuple):
    language: str
    code: str
    place: str
    not_run: str
    added: list[str]


def blocks_of(page: Path) -> list[Block]:
    blocks, mark = [], None
    for token in MarkdownIt().parse(page.read_text()):
        if token.type == "fence" and token.info in ("sh", "python"):
            kind, words = mark.groups() if mark else ("", "")
            why, added = (words, "") if kind == "not run" else ("", words)
            place = f"{page.name}:{token.map[0] + 1}"
            blocks.append(Block(token.info, token.content, place, why, shlex.split(added)))
        mark = MARK.fullmatch(token.content) if token.type == "html_block" else None
    return blocks


BLOCKS = {page: blocks_of(page) for page in PAGES}
NOT_RUN = [block for blocks in BLOCKS.values() for block in blocks if block.not_run]


@pytest.mark.parametrize("place", [
    pytest.param(block.place, marks=pytest.mark.skip(reason=f"{block.place}: {block.not_run}"))
    for block in NOT_RUN
])  # fmt: skip
def test_blocks_that_are_not_run_say_why(place):
    """Skipped, so that pytest lists them."""


@pytest.fixture
def small_home(lite0_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home in which the embedded data set has a few pictures."""
    home = tmp_path_factory.mktemp("docs-home")
    (home / "weights").symlink_to(lite0_weights.parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BUCKETRANK_HOME", str(home))
        patch.setitem(shapes.SIZES, "train", 8)
        patch.setitem(shapes.SIZES, "val", 4)
        yield home


@pytest.fixture
def working_folder(small_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which holds what the pages' readers have."""
    blobs = write_blobs(tmp_path / "labels-and-photos", 12, seed=1)
    blobs.write_text(re.sub(r', "segmentation": \[\[[^]]*\]\]', "", blobs.read_text()))
    (tmp_path / "photos").symlink_to(tmp_path / "labels-and-photos" / "images")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "page", [p for p, b in BLOCKS.items() if any(not block.not_run for block in b)],
    ids=lambda page: page.name,
)  # fmt: skip
def test_every_block_runs(page, working_folder):
    names: dict[str, Any] = {}
    for block in BLOCKS[page]:
        if block.not_run:
            continue
        if block.language == "python":
            exec(compile(block.code, block.place, "exec"), names)
            continue
        for line in block.code.replace("\\\n", " ").splitlines():
            run_line(line, block)


def run_line(line: str, block: Block) -> None:
    """A line of a shell block; `bucketrank` within this process, which has imported everything."""
    words = shlex.split(line, comments=True)
    if words[:1] != ["bucketrank"]:
        subprocess.run(["bash", "-ec", line], check=True, env=os.environ)
        return
    added = block.added if words[1] == "train" else []
    result = CliRunner().invoke(app, [*words[1:], *added])
    assert result.exit_code == 0, f"{block.place}: {line}\n{result.output}\n{result.exception}"


@pytest.mark.parametrize("readme", ["README.md", "projects/BucketedRanking/README.md"])
def test_links_of_the_readmes_lead_somewhere(readme):
    path = REPOSITORY / readme
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", path.read_text())
    assert links
    assert not [link for link in links if not (path.parent / link).exists()]


def test_every_config_key_is_on_its_page(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "docs")
    from config_keys import config_keys

    def keys(node: CfgNode, prefix: str = "") -> set[str]:
        return {
            key
            for name, value in node.items()
            for key in (
                keys(value, f"{prefix}{name}.") if isinstance(value, CfgNode) and value
                else {prefix + name}
            )
        }  # fmt: skip

    ours = get_cfg()
    add_bucketed_ranking_config(ours)
    listed = re.findall(r"`([A-Z_0-9.]+)` = ", config_keys())
    assert len(listed) == len(set(listed))
    assert set(listed) == keys(ours) - keys(get_cfg())
