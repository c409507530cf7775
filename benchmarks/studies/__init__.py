"""Studies of trained policies: ``python -m benchmarks.studies``."""
