"""GPU kernels are tried on the GPU at hand before they are used there: each against the reference, once.

`cases` is what they must get right, `child` a process that tries them (a kernel that crashes takes no one with it),
`verdict` runs it, remembers what came out, and says why a kernel is not to be used. `fastsketch check-gpu` shows it.
"""
