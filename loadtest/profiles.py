"""How a crowd behaves, by the names that slo.toml and the command line use."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """What tier clients have. pause: seconds between what one does and the next, from and to."""

    tier: str
    pause: tuple[float, float]


PROFILES = {
    "service-tier": Profile("service", (0.1, 0.3)),  # the limits at work, in nobody's way
    "limits-on": Profile("free", (0.5, 1.5)),  # a person's pace, which is soon too fast
}
