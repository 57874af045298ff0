"""Parts of `benchmarks.chaos`: hosts, a job on them, and what disturbs it."""
