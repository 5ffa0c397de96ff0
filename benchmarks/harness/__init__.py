"""What the benchmarks share: the parts under measurement, started for one run and gone after it."""
