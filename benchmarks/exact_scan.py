"""Milliseconds of an exact search over all items, for each way of storing them: `python benchmarks/exact_scan.py`.

Every storage is timed twice, as an expanded table and as one that stays encoded in memory, against float32. Engines are
asked in turn, on one thread; what is printed are medians. Run it with nothing else on the machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Python puts a script's folder first on the path, where it would hide packages of the repository.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402

from models.keras import tf  # noqa: E402
from models.retrieval.exact import ExactTopK  # noqa: E402

BATCHES = (1, 2, 8, 32)


def main() -> int:
    """Times top 10 of every table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    vectors = np.random.default_rng(0).normal(size=(arguments.items + 1, arguments.dim)).astype(np.float32)
    searches = {
        (storage, form): search(vectors, storage, form == "expanded at load")
        for form in ("expanded at load", "encoded in memory")
        for storage in ("float32", "bfloat16", "int8", "int4")
    }
    queries = np.random.default_rng(1).normal(size=(max(BATCHES), arguments.dim)).astype(np.float32)
    times: dict[tuple[str, str], dict[int, list[float]]] = {key: {rows: [] for rows in BATCHES} for key in searches}
    for turn in range(arguments.rounds + 2):
        for key, run in searches.items():
            for rows in BATCHES:
                query = tf.constant(queries[:rows])
                started = time.perf_counter()
                run(query)
                if turn > 1:
                    times[key][rows].append((time.perf_counter() - started) * 1000)
    table = {key: {f"batch {rows}": statistics.median(each) for rows, each in of.items()} for key, of in times.items()}
    print(f"{arguments.items} items, {arguments.dim} columns, ms")
    print(pd.DataFrame(table).T.round(2).to_string())
    return 0


def search(vectors: np.ndarray, storage: str, is_expanded: bool) -> tf.types.experimental.ConcreteFunction:
    """Top 10 of all rows but the first, for a query `(B, D)`."""
    from models.compression import storage as module

    module.EXPANDED_BYTES = 2**40 if is_expanded else 0
    index = ExactTopK(vectors, np.arange(len(vectors)) > 0, storage=storage)

    def top_ten(query: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return index(query, tf.constant(10), tf.zeros([tf.shape(query)[0], 0], tf.int32))

    signature = tf.TensorSpec([None, vectors.shape[1]], tf.float32)
    concrete = tf.function(top_ten, autograph=False).get_concrete_function(signature)
    concrete.index = index  # keeps its variables alive
    return concrete


if __name__ == "__main__":
    sys.exit(main())
