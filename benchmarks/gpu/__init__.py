"""The measurements that need a CUDA GPU, as one command that can be left alone: `python -m benchmarks.gpu`.

Correctness comes first: no speed is measured or printed while a check is red. Every row is kept as soon as it is there,
so a run that is cut off goes on where it was.
"""
