"""Loads one version and says whether it went well: the process that dies so that the server need not.

Started by `serving.server.loading.probe_version`. Exit code 0, or 1 with `{"code": …, "message": …}` on stdout.
"""

import json
import os
import sys
from pathlib import Path

from serving.lean_tensorflow import lean_tensorflow

NICENESS = 5  # behind the requests, yet not so far that a busy machine would never get a new version


def main(arguments: list[str]) -> int:
    """Loads the folder `arguments[0]`; the rest are tags, both thread counts and the warm-up iterations."""
    os.nice(NICENESS)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    path, tags, intra_op, inter_op, iterations = arguments
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
