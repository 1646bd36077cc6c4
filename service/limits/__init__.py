"""What a limit promises, and nothing else: a log of admitted units for each key, asked in one step.

`Memory` and `Shared` (Redis) decide alike; `decide.lua` and `memory.py` say how.
"""

from service.limits.claims import Claim, Decision, Policy, Standing
from service.limits.memory import Memory
from service.limits.shared import Shared

__all__ = ["Claim", "Decision", "Memory", "Policy", "Shared", "Standing"]
