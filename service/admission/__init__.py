"""Admission control: how many requests run at once, and how long the others wait.

A process runs at most `limit` requests at a time, so that its event loop stays responsive. The
others wait in a queue. A request is refused when it has waited for `budget` seconds.

A queue that stays full makes every request wait for the whole budget. So while requests are being
refused, the queue's timeout is shortened in steps (`QueueTimeout`), as Facebook's CoDel does. The
requests that are served then wait for a short time. Two kinds of load look alike here. Clients
that come independently of each other gain from a short timeout. Clients that repeat a refused
request at once only produce more refusals. So a step is undone when it brings more requests.
"""

from service.admission.queue import Admission, AdmissionQueue, current, seconds_left, waiting

OVERLOADED = "The server is overloaded; retry later"

__all__ = [
    "OVERLOADED",
    "Admission",
    "AdmissionQueue",
    "current",
    "seconds_left",
    "waiting",
]
