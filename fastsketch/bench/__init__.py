"""Speed and memory of fastsketch against the same computation written otherwise: `fastsketch bench`.

`cases.py` says what is computed, `baselines/` how others compute it, `timing.py` and `memory.py` how it is measured,
`scaling.py` how cost grows, `step.py` what a whole training step costs.
"""
