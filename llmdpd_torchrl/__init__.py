"""LLM-Driven Policy Diffusion on TorchRL."""

__version__ = "0.1.0"
