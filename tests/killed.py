"""An application whose worker dies at a moment of a write that the client chooses.

`octavo serve --app tests.killed:create_app`. The X-Request-ID of a request names the moment.
"""

import os
import signal
from typing import Any

from quart import Quart
from sqlalchemy import event

from service import app as octavo
from service.config import Settings
from service.db.database import Database
from service.logs import request_id

BEFORE, AFTER = "killed-before-commit", "killed-after-commit"


def create_app(settings: Settings) -> Quart:
    """Make the application."""
    app = octavo.create_app(settings)
    database: Database = app.extensions["database"]
    open_database, write_batched = database.open, database.write_batched

    async def opened() -> None:
        await open_database()

        @event.listens_for(database.writer.sync_engine, "commit")
        def committing(_: Any) -> None:
            if request_id.get() == BEFORE:
                os.kill(os.getpid(), signal.SIGKILL)

    async def written(work: Any, item: Any) -> Any:
        result = await write_batched(work, item)
        if request_id.get() == AFTER:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    database.open, database.write_batched = opened, written  # type: ignore[method-assign]  # faults
    return app
