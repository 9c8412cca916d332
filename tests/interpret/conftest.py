"""Triton decides at import whether kernels are compiled or interpreted, so the kernels' tests (test_kernel_*.py) run in
a process of their own, with TRITON_INTERPRET=1, started by test_interpreter.py. By hand:
TRITON_INTERPRET=1 python -m pytest tests/interpret
"""

import os

collect_ignore_glob = ["test_interpreter.py"] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_kernel_*.py"]
