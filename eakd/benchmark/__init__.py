"""How fast the shipped loop is, beside a plain loop and beside the bare limit.

Our loop, its EA form and the limit alternate step by step, so that a busy machine slows each alike,
and are compared step by step. The plain loop has a process of its own that sleeps while the others
run: our loop changes settings of its whole process (`eakd.training.device.keep_freed_memory`) that
a plain loop would not have.
"""

from eakd.benchmark.command import benchmark, seconds_per_step

__all__ = ["benchmark", "seconds_per_step"]
