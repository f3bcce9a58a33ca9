"""Weights from anywhere: found, read without running anything in them, and fitted to the model strictly."""
