"""The training step, then the sampler. ``python -m benchmarks``."""

from benchmarks import sampling, step

step.main()
sampling.main()
