"""Checks of saved packages beside the converter: what may happen to them on a device, and what does."""
