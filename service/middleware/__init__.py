"""ASGI middleware around the application, and observers of its requests and its event loop.

request_edge    request id, cap on the body, security headers and errors of every request
compression     compresses responses
load_shedding   queues requests, and refuses them under overload
access_log      logs a line for each request
loop_lag        measures the lag of the event loop
"""
