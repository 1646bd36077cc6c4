"""Octavo, for another server than its own."""

import gc

from quart import Quart

from service.app import create_app as create
from service.config import load_from_environment
from service.server.worker import GENERATIONS


def create_app() -> Quart:
    """Create Octavo, with the garbage collection settings of its own server."""
    app = create(load_from_environment())
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GENERATIONS)
    return app
