"""MobileViT as Core ML packages, proven right on any machine."""

__version__ = "0.1.0"
