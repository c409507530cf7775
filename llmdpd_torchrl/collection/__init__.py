"""Making data: the one package in which simulators write episodes.

Nothing is imported here: reading data needs no simulator.
"""
