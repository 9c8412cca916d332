"""Errors a user can cause and mend: the command line prints each as one line and exits non-zero."""


class FastsketchError(Exception):
    """Something outside the code is wrong (a file, a folder, a setting); the message says what and where."""


class KeptName(FastsketchError, ValueError):
    """A name that means something else here: of a folder for those who mend it there, an argument for callers."""
