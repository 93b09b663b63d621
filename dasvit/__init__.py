"""Differentiable architecture search for vision transformers (DASViT)."""

__version__ = "0.1.0"
