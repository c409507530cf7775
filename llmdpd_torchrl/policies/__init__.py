"""A trained policy: prompted, saved, loaded and published."""

from llmdpd_torchrl.policies.policy import (
    LLMDPDPolicy,
)
from llmdpd_torchrl.policies.prompted import (
    PromptedPolicy,
)

__all__ = [
    "LLMDPDPolicy",
    "PromptedPolicy",
]
