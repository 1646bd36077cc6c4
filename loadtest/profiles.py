"""The profiles of clients; slo.toml and the command line use their names."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """The tier of clients. pause: minimum and maximum of the seconds between two requests."""

    tier: str
    pause: tuple[float, float]


PROFILES = {
    "service-tier": Profile("service", (0.1, 0.3)),  # rate limits that count, and reject nothing
    "limits-on": Profile("free", (0.5, 1.5)),  # the pace of a person, which soon exceeds the limits
}
