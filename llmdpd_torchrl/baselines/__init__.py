"""Policies that ours is compared with."""

from llmdpd_torchrl.baselines.retrieve_and_play import RetrieveAndPlay, retrieve_and_play_policy

__all__ = ["RetrieveAndPlay", "retrieve_and_play_policy"]
