"""What the Triton kernels use of chips that are not here, for `benchmarks.compile_table` and `tests/compile`."""
