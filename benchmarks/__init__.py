"""What retailinfer is measured by: two reference workloads, every promised figure, and the peers beside it.

    python -m benchmarks            every figure, reached or missed, in under 15 minutes on 2 cores
    python -m benchmarks --short    the same figures with fewer calls, in under 4
    pytest benchmarks               the parts (decode, fill, gather, run, rank, policy, encode) with pytest-benchmark

Where to go next: `workloads` defines the inputs, `targets.toml` the figures, `harness` how time is taken, `measures`
how each figure is measured, `peers/` what it is compared with, `report` what is printed and written.
"""
