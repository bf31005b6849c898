"""Recipes: each module's `get_config()` returns the data that define one run."""
