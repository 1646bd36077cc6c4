"""Counters of the events of one process's cache."""

from dataclasses import dataclass


@dataclass
class Counters:
    """Events since the process began. The cache guarantees that `stale` stays 0."""

    hits: int = 0
    misses: int = 0
    bypasses: int = 0
    fills: int = 0
    marks: int = 0
    epoch_changes: int = 0
    breaker_openings: int = 0
    stale: int = 0
