"""The README's block of operators runs as it stands."""

import re
from pathlib import Path

import torch

README = Path(__file__).parents[2] / "README.md"


def test_the_operators_of_the_readme_run():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    (block,) = (block for block in blocks if "import fastsketch as fs" in block)
    names: dict = {}
    exec(block, names)
    assert names["loss"].shape == () and names["loss"].isfinite()
    assert names["drawn"].shape == (1, 32, 128, 128)
    torch.testing.assert_close(names["received"].sum(), torch.tensor(1.0))
