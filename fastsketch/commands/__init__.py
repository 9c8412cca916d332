"""The commands: a module each, with `main(arguments)` and, for most, a dataclass of options.

What only one of them needs is imported when it runs.
"""

from pathlib import Path


def data_folder(name: str, cache: Path) -> Path:
    """The folder of this name; "builtin" is drawn into `cache` first."""
    if name != "builtin":
        return Path(name)
    from fastsketch.training.faces import write_faces

    return write_faces(cache, quiet=False)
