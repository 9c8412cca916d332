"""How others compute it, re-written by us from the formulas, operation by operation, in plain PyTorch.

Each is fair game for torch.compile, and is measured both ways.
"""
