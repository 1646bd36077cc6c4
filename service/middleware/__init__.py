"""ASGI middleware around the application, and what it observes.

request_edge    request id, size of the body, security headers, errors: around every request
load_shedding   the queue in which requests wait for their turn
access_log      a line of the log for each request
loop_lag        how late the event loop is
"""
