"""Loads one version and says whether it went well: the process that dies so that the server need not.

Started by `serving.server.loading.probe_version`. Exit code 0, or 1 with `{"code": …, "message": …}` on stdout.
"""

import contextlib
import json
import os
import sys
from enum import Enum
from pathlib import Path

from serving.lean_tensorflow import lean_tensorflow

NICENESS = 5  # behind the requests, yet not so far that a busy machine would never get a new version


class Priority(Enum):
    """What the probe may take of the processor.

    With niceness alone a request that wakes up waits for the time slice of the probe to end: one in 100 took 130 ms
    beside an import of TensorFlow, 24 ms beside one with the policy IDLE, 10 ms beside none.
    """

    IDLE = "idle"
    LOW = "low"

    def take(self) -> None:
        """Gives it to this process."""
        os.nice(NICENESS)
        if self is Priority.IDLE and sys.platform == "linux":
            with contextlib.suppress(OSError):  # a container may forbid it
                os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def main(arguments: list[str]) -> int:
    """Loads the folder `arguments[0]`; the rest are tags, both thread counts, warm-up iterations and the priority."""
    path, tags, intra_op, inter_op, iterations, priority = arguments
    Priority(priority).take()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with lean_tensorflow():
        from serving.server.loading import LoadOptions, load_model
        from serving.server.saved_model import SessionThreads
        from serving.server.status import status_of
    options = LoadOptions(tuple(tags.split(",")), SessionThreads(int(intra_op), int(inter_op)), int(iterations))
    try:
        load_model(Path(path), options).close()
    except Exception as error:
        status = status_of(error)
        sys.stdout.write(json.dumps({"code": int(status.code), "message": status.message}) + "\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
