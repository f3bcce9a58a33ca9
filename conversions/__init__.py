"""Recipes of the shipped packages, and the command that makes them all: `python -m conversions --all`."""
