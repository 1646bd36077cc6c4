"""What was measured, as it is kept."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cell:
    """One contestant at one kind of work over so many connections, in one round.

    errors: share of the requests that failed; with any, the other values are no figures.
    rate: requests per second. cpu: microseconds of the server per request. p50, p99: milliseconds.
    busy: part of its core that the server used; where it is far from 1, something else was slower.
    """

    contestant: str
    group: str
    kind: str
    connections: int
    errors: float
    rate: float
    cpu: float
    p50: float
    p99: float
    busy: float

    @property
    def place(self) -> tuple[str, str, int]:
        """Contestant, kind of work and connections."""
        return self.contestant, self.kind, self.connections


@dataclass(frozen=True)
class Results:
    """A whole run. memory: megabytes that each server's processes held at most."""

    books: int
    seconds: int
    rounds: int
    machine: dict[str, str]
    cells: list[Cell]
    memory: dict[str, float]

    @property
    def kinds(self) -> list[str]:
        """The kinds of work, in order."""
        return list(dict.fromkeys(cell.kind for cell in self.cells))

    @property
    def contestants(self) -> list[str]:
        """The contestants, in order."""
        return list(dict.fromkeys(cell.contestant for cell in self.cells))

    @property
    def connections(self) -> list[int]:
        """The numbers of connections, in order."""
        return list(dict.fromkeys(cell.connections for cell in self.cells))

    def of(self, contestant: str, kind: str, connections: int) -> Cell:
        """Give a cell. Raises KeyError if it was not measured."""
        for cell in self.cells:
            if cell.place == (contestant, kind, connections):
                return cell
        raise KeyError((contestant, kind, connections))

    def save(self, path: Path) -> None:
        """Write them down."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Results":
        """Read what was written."""
        told = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**told, "cells": [Cell(**cell) for cell in told["cells"]]})


def best(cells: Iterable[Cell]) -> list[Cell]:
    """Give the best round of each place, as a whole: the fewest errors, then the highest rate.

    What else the machine does can only take from a round, and adds to none.
    """
    rounds: dict[tuple[str, str, int], Cell] = {}
    for cell in cells:
        kept = rounds.setdefault(cell.place, cell)
        if (-cell.errors, cell.rate) > (-kept.errors, kept.rate):
            rounds[cell.place] = cell
    return list(rounds.values())
