"""The one error type for anything that a user can cause and can mend, and what no message says."""

import re

_ADDRESS = re.compile(r"""(\w+://)(?:[^\s/'"]*@)?([^\s?'"]*)(?:\?[^\s'"]*)?""")


def without_secrets(text: str) -> str:
    """A text whose addresses have no user, password and query any more."""
    return _ADDRESS.sub(r"\1\2", text)


class BucketRankError(Exception):
    """A problem that the user can mend.

    The message is one clear sentence or two: what is wrong, where, and what to do. The command
    line prints it without a traceback and exits with code 2.
    """
