"""The results of a run, and how they are stored as JSON."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cell:
    """The figures of one server: one kind of work, one number of connections, one round.

    errors: share of the requests that failed; above 0, the other values are not valid.
    rate: requests per second. cpu: microseconds of CPU per request. p50, p99: milliseconds.
    busy: share of its core that the server used; far below 1, another part was the bottleneck.
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
        """Server, kind of work and connections."""
        return self.contestant, self.kind, self.connections


@dataclass(frozen=True)
class Results:
    """The results of a run. memory: peak megabytes of each server, all its processes together."""

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
        """The servers, in order."""
        return list(dict.fromkeys(cell.contestant for cell in self.cells))

    def measured(self, kind: str) -> list[str]:
        """Return the servers that did a kind of work, in order."""
        return list(dict.fromkeys(cell.contestant for cell in self.cells if cell.kind == kind))

    @property
    def connections(self) -> list[int]:
        """The numbers of connections, in order."""
        return list(dict.fromkeys(cell.connections for cell in self.cells))

    def of(self, contestant: str, kind: str, connections: int) -> Cell:
        """Return a cell. Raises KeyError if it was not measured."""
        for cell in self.cells:
            if cell.place == (contestant, kind, connections):
                return cell
        raise KeyError((contestant, kind, connections))

    def save(self, path: Path) -> None:
        """Write the results to a file."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Results":
        """Read results from a file that `save` wrote."""
        data = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**data, "cells": [Cell(**cell) for cell in data["cells"]]})


def best(cells: Iterable[Cell]) -> list[Cell]:
    """Return the best round of each place: the fewest errors, then the highest rate.

    All figures of a cell come from the same round. Other load on the machine only makes a round
    slower.
    """
    rounds: dict[tuple[str, str, int], Cell] = {}
    for cell in cells:
        best_cell = rounds.setdefault(cell.place, cell)
        if (-cell.errors, cell.rate) > (-best_cell.errors, best_cell.rate):
            rounds[cell.place] = cell
    return list(rounds.values())
