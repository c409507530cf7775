"""Actors: the diffusion policy, and those that it is compared with."""
