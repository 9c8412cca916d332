"""Commands of the command line that have a file of their own: a dataclass of options and `main(arguments)`."""

from pathlib import Path


def data_folder(name: str, cache: Path) -> Path:
    """The folder of this name; "builtin" is drawn into `cache` first."""
    if name != "builtin":
        return Path(name)
    from fastsketch.training.faces import write_faces

    return write_faces(cache, progress=True)
