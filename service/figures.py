"""Where the figures of several workers are: files in a folder that all of them read.

Each has them by a number that a new worker takes over from one that has ended: nothing that was
counted is lost, and the files stay few.
"""

import os
import shutil

from prometheus_client import multiprocess, values

FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # the Prometheus client's own name for it


def share(number: int) -> None:
    """Keep this process's figures in the folder of all workers, as `number`. Before any is made.

    The one place where two applications of a process would share something: the Prometheus
    client chooses for all.
    """
    values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]  # it has no types


def forget(folder: str, number: int) -> None:
    """Drop what was true of a worker only while it lived."""
    multiprocess.mark_process_dead(number, folder)  # type: ignore[no-untyped-call]  # it has no types


def drop() -> None:
    """Remove the folder of all workers: the service is over."""
    shutil.rmtree(os.environ[FOLDER], ignore_errors=True)
