"""Run the benchmarks of the training step and of the sampler: ``python -m benchmarks``."""

from benchmarks import sampling, step

step.main()
sampling.main()
