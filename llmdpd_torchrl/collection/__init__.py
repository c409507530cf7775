"""Data collection: the only package in which simulators write episodes.

Nothing is imported here, because reading data needs no simulator.
"""
