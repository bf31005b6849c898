"""Scripts that measure: benchmarks, and the experiments whose results are claimed."""
