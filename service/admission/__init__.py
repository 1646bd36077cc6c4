"""Admission control: limit the requests that run at once, and queue or refuse other requests.

A process runs at most `limit` requests at a time, so that its event loop stays responsive. Other
requests wait in a queue. A request is refused when it has waited for `budget` seconds.

A queue that stays full makes every request wait for the whole budget. So while requests are being
refused, the queue's timeout is shortened in steps (`QueueTimeout`), as in Facebook's variant of
CoDel ("Fail at Scale", ACM Queue 2015). The served requests then wait for a short time. Independent
clients (an open loop) gain from the shorter timeout. Clients that retry a refused request at once
(a closed loop) only cause more refusals. The queue cannot tell these loads apart, so a step is
undone if the rate of arrivals grows by half.

    queue     the queue, and the turn of a request
    timeout   the timeout of the queue
    quick     requests that need no turn
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
