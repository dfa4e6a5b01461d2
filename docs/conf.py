"""Sphinx builds the site from these pages: `make docs`. Nothing is fetched when it is looked at."""

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util import logging
from typer import Context
from typer.cli import get_docs_for_click
from typer.main import get_command

from bucketed_ranking import __version__
from bucketrank_cli.main import app as command_line

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))
from config_keys import config_keys  # noqa: E402

project, author, release = "bucketrank", "bucketrank authors", __version__
project_copyright = "bucketrank authors; Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["deflist"]
exclude_patterns = ["reference/generated"]  # which pages include
myst_heading_anchors = 4  # links to headings are checked as those to pages are
html_theme, html_title = "furo", "bucketrank"
html_static_path, html_css_files = ["static"], ["site.css"]
html_show_sourcelink = False
smartquotes = False  # which makes a dash of the hyphens of an option
napoleon_use_rtype = False
maximum_signature_line_length = 80


def write_reference(_app: Sphinx) -> None:
    """Write the parts of pages that are made from the code."""
    group = get_command(command_line)
    commands = get_docs_for_click(obj=group, ctx=Context(group), name="bucketrank", title="")
    # Its lists of commands cut their sentences off; each has a section anyway.
    commands = re.sub(r"\*\*Commands\*\*:\n\n(\* .*\n)+\n", "", commands)
    folder = DOCS / "reference" / "generated"
    folder.mkdir(exist_ok=True)
    (folder / "commands.md").write_text(commands.partition("\n")[2])
    (folder / "config.md").write_text(config_keys())


def check_that_nothing_is_fetched(app: Sphinx, error: Exception | None) -> None:
    """Warn of everything that a page would load from elsewhere."""
    elsewhere = re.compile(r"""(?:<link[^>]*\shref|\ssrc)=["'](?:https?:)?//[^"']*""")
    for page in [] if error else Path(app.outdir).rglob("*.html"):
        for load in elsewhere.findall(page.read_text()):
            logging.getLogger(__name__).warning("%s would fetch %s", page, load)


def setup(app: Sphinx) -> None:
    """What Sphinx calls first."""
    app.connect("builder-inited", write_reference)
    app.connect("build-finished", check_that_nothing_is_fetched)
