"""Errors, files, processes and the command line: what every other package may use."""
