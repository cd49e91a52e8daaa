"""The measurements that need a CUDA GPU, as one command that runs unattended: `python -m benchmarks.gpu`.

Correctness comes first: no speed is measured or printed while a check is red. Every row is written at once, so that the
next run continues one that was cut off.
"""
