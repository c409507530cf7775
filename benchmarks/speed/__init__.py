"""Benchmarks of speed, memory and reliability: ``python -m benchmarks.speed.NAME``."""
