"""Recipes of packages, built, verified and catalogued."""
