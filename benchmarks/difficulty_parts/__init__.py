"""Parts of the benchmark of `data.sampler: difficulty`."""
