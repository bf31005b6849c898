"""Runs of run.py that experiments start, watch, compare and record."""
