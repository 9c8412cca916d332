"""Peak memory of one contender of a case, in a process of its own: `python -m benchmarks.memory CASE CONTENDER`.

Everything is loaded and warmed up on a small case of the same kind; then the kernel's high-water mark of resident
memory is reset (Linux: /proc/self/clear_refs), the contender runs once, and the difference between the mark and what
was resident before is printed in bytes. It counts everything: results, scratch memory of every thread, the
allocator's slack.
"""

import sys
from pathlib import Path

import torch

from benchmarks import cases


def _resident(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) * 1024


def peak(case: cases.Case, contender: str) -> int:
    """Bytes above what was resident before."""
    run = case.contenders[contender]
    prepared = run.prepare()
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    result = run.run(prepared)
    after = _resident("VmHWM")
    del result
    return after - before


def main() -> None:
    name, contender, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(threads)
    small = cases.patch_nce(1, 64) if name.startswith("patch_nce") else cases.attention_statistics(64)
    small.contenders[contender].run(small.contenders[contender].prepare())
    print(peak(cases.MEMORY_CASES[name][0](), contender))


if __name__ == "__main__":
    main()
