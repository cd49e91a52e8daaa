"""The measurements that need a CUDA GPU, as one command that runs unattended: `python -m benchmarks.gpu`.

Correctness comes first: a check says what it covers, a figure says what it rests on, and none is measured or shown that
rests on what a red check covers. Every row is written at once, so that the next run continues one that was cut off.

- `jobs`: what can be measured, in which order, and what is chosen of it; `workload`: at which sizes
- `checks`, `gpu_tests`, `sanitizer`: what must be right
- `runtime`, `ceilings`, `kernels`, `models`, `traces`, `training`: what is measured; `forms`, `networks`: in which ways
- `runner`, `worker`, `parent`, `store`: doing rows within a budget, in a process that can be ended; keeping them
- `costs`, `schedule`, `unattended`, `account`: what rows cost, what fits into a time, doing it; what is missing then
"""
