"""The page of config keys, from the assignments in config.py and the comments above them."""

import ast
import inspect
from itertools import takewhile

from bucketed_ranking import config


def config_keys() -> str:
    """Markdown: a section for each node; keys with their defaults, and what is said of them."""
    source = inspect.getsource(config.add_bucketed_ranking_config)
    lines = source.splitlines()
    page, section = [""], ""
    for statement in ast.parse(source).body[0].body[1:]:
        key = ast.unparse(statement.targets[0]).removeprefix("cfg.")
        is_node = ast.unparse(statement.value) == "CfgNode()"
        comment = _comment_above(lines, statement.lineno - 1)
        if (name := key if is_node else key.rpartition(".")[0]) != section:
            section = name
            page.append(f"\n## {section}\n")
        if is_node:
            page += [f"{comment}\n"] if comment else []
            continue
        entry = _key_and_default(key, statement.value)
        if not comment and page[-1].startswith("`"):  # keys in a row below one comment
            keys, _, comment = page.pop().partition("\n: ")
            entry = f"{keys}, {entry}"
        page.append(f"{entry}\n: {comment.strip() or 'As its name says.'}\n")
    return "\n".join(page) + "\n"


def _comment_above(lines: list[str], index: int) -> str:
    above = takewhile(lambda line: line.lstrip().startswith("#"), reversed(lines[:index]))
    return " ".join(line.lstrip(" #") for line in reversed(list(above)))


def _key_and_default(key: str, value: ast.expr) -> str:
    if isinstance(value, ast.Name):
        return f"`{key}` = `{getattr(config, value.id)!r}`"
    text = ast.unparse(value)
    return f"`{key}` = `{'empty' if text.startswith('CfgNode(') else text}`"
