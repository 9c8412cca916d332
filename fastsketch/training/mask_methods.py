"""Where a photo's mask may come from, by name (`fastsketch.training.masks`); for command lines: imports little."""

from typing import Literal, get_args

MakingMethod = Literal["auto", "white", "grabcut", "person", "none"]
"""Those that a photo alone is enough for."""

MaskMethod = Literal[MakingMethod, "folder"]
"""All; folder: only masks that are given beside the photos."""

METHODS: tuple[MaskMethod, ...] = get_args(MaskMethod)
