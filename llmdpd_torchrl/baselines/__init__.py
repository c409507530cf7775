"""Policies and objectives that ours is compared with."""
