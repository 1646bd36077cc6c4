"""Measurements: what is fast, and why."""
