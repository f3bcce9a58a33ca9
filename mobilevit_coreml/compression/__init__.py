"""Smaller packages that still work: how weights are stored, which layer bears what, and the search for a budget."""
