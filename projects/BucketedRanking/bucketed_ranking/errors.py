"""The one error type for anything that a user can cause and can mend."""


class BucketRankError(Exception):
    """A problem that the user can mend.

    The message is one clear sentence or two: what is wrong, where, and what to do. The command
    line prints it without a traceback and exits with code 2.
    """
