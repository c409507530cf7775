"""A trained policy: prompted, called, saved, loaded and published."""

from llmdpd_torchrl.policies.policy import LLMDPDPolicy

__all__ = ["LLMDPDPolicy"]
