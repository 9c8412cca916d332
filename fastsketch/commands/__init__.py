"""The commands: a module each, with `main(arguments)` and, for most, a dataclass of options.

What a command needs is imported when it runs: the help is quick.
"""

from pathlib import Path


def data_folder(name: str, cache: Path) -> Path:
    """The folder of this name; "builtin" is drawn into `cache` first."""
    if name != "builtin":
        return Path(name)
    from fastsketch.training.faces import write_faces

    return write_faces(cache, progress=True)
