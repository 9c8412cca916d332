"""Errors a user can cause and mend: the command line prints each as one line and exits non-zero."""


class FastsketchError(Exception):
    """Something outside the code is wrong (a file, a folder, a setting); the message says what and where."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says, for a message of one line; its type's name where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class KeptName(FastsketchError, ValueError):
    """A name that means something else here: of a folder for those who mend it there, an argument for callers."""
