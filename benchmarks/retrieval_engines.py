"""Tandem's and TFRS's retrieval as SavedModels, for `benchmarks/retrieval.py`: `{build,measure} ENGINE DATA FOLDER`.

SavedModels are asked through TensorFlow's own session, one thread, with the query alone as input; k is fixed in the
signature, as it is in the peers' calls. TFRS's Streaming layer is asked as it is, eagerly.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Python puts a script's folder first on the path, where `serving.py` would stand in for the package.
_HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _HERE] + [str(_HERE.parent)]

import numpy as np  # noqa: E402

from benchmarks.retrieval_timing import recall, resident_bytes, timed  # noqa: E402
from models.keras import tf  # noqa: E402
from models.retrieval.exact import ExactTopK  # noqa: E402
from models.retrieval.partitioned import PartitionedTopK  # noqa: E402

KS = (10, 100)


def build_tandem(engine: str, data: Any, target: float) -> tuple[tf.Module, Callable[[tf.Tensor, int], Any], str]:
    """The module, its call and what it reads."""
    _, kind, storage = engine.split()
    vectors = np.pad(data["items"], ((1, 0), (0, 0)))
    live = np.arange(len(vectors)) > 0
    if kind == "exact":
        index: Any = ExactTopK(vectors, live, storage=storage)
        notes = "all items"
    else:
        index = PartitionedTopK(vectors, live, queries=data["training"], recall_target=target, storage=storage)
        notes = f"{index.probes[0].blocks} of {index.num_blocks} blocks of {index.block_size}"

    def search(query: tf.Tensor, k: int) -> Any:
        return index(query, tf.constant(k), tf.zeros([tf.shape(query)[0], 0], tf.int32))[1] - 1

    return index, search, notes


def build_brute_force(items: np.ndarray) -> tuple[Any, Callable[[tf.Tensor, int], Any], str]:
    """TFRS BruteForce."""
    import tensorflow_recommenders as tfrs

    layer = tfrs.layers.factorized_top_k.BruteForce()
    layer.index(tf.constant(items))
    return layer, lambda query, k: layer(query, k=k)[1], "all items"


def build(engine: str, data_file: Path, folder: Path, target: float) -> None:
    """Writes a SavedModel with a signature for each k, unless it is there."""
    if folder.exists():
        return
    data = np.load(data_file)
    start = time.process_time()
    tracked, search, notes = (
        build_brute_force(data["items"]) if engine == "TFRS BruteForce" else build_tandem(engine, data, target)
    )
    seconds = time.process_time() - start
    module = tf.Module()
    module.tracked = tracked
    spec = [tf.TensorSpec([None, data["items"].shape[1]], tf.float32, name="query")]
    signatures = {
        f"top_{k}": tf.function(lambda query, k=k: {"rows": search(query, k)}, input_signature=spec, autograph=False)
        for k in KS
    }
    partial = folder.with_suffix(".partial")
    tf.saved_model.save(module, str(partial), signatures=signatures)
    (partial / "build.json").write_text(json.dumps({"build_cpu_seconds": seconds, "parameter": notes}))
    partial.rename(folder)


def load(folder: Path) -> dict[int, Callable[[np.ndarray], np.ndarray]]:
    """The search of each k through a one-thread session."""
    v1 = tf.compat.v1
    graph = tf.Graph()
    with graph.as_default():
        config = v1.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=-1)
        session = v1.Session(graph=graph, config=config)
        signatures = v1.saved_model.load(session, ["serve"], str(folder)).signature_def
        found = {}
        for k in KS:
            own = signatures[f"top_{k}"]
            found[k] = session.make_callable(own.outputs["rows"].name, feed_list=[own.inputs["query"].name])
        return found


def streaming(items: np.ndarray) -> dict[int, Callable[[np.ndarray], np.ndarray]]:
    """TFRS Streaming, eager."""
    import tensorflow_recommenders as tfrs

    tf.config.threading.set_intra_op_parallelism_threads(1)
    batches = tf.data.Dataset.from_tensor_slices(items).batch(10_000)
    found = {}
    for k in KS:
        layer = tfrs.layers.factorized_top_k.Streaming(k=k)
        layer.index_from_dataset(batches)
        found[k] = lambda query, layer=layer: layer(tf.constant(query))[1].numpy()
    return found


def measure(engine: str, data_file: Path, folder: Path, seconds: float) -> list[dict[str, Any]]:
    """A row for each k."""
    data = np.load(data_file)
    queries, truth = data["test"], data["truth"]
    before, start = resident_bytes(), time.perf_counter()
    notes = {"parameter": "eager, batches of 10,000"}
    if engine == "TFRS Streaming":
        searches, tried = streaming(data["items"]), 32
    else:
        searches, tried = load(folder), len(queries)
        notes = json.loads((folder / "build.json").read_text())
    load_seconds = time.perf_counter() - start
    for search in searches.values():
        search(queries[:1])
    resident = resident_bytes() - before
    rows = []
    for k, search in searches.items():
        times = timed(lambda q, s=search: s(q[None]), search, queries, seconds)
        found = recall(search, queries[:tried], truth, k)
        base = {"engine": engine, "k": k, "recall": found, "resident": resident, "load_seconds": load_seconds}
        rows.append({**base, **notes, **times})
    return rows


def main() -> None:
    """`retrieval_engines.py {build,measure} ENGINE DATA FOLDER NUMBER`: prints JSON; NUMBER = target or seconds."""
    action, engine, data_file, folder, number = sys.argv[1:6]
    if action == "build":
        build(engine, Path(data_file), Path(folder), float(number))
    else:
        print(json.dumps(measure(engine, Path(data_file), Path(folder), float(number))))


if __name__ == "__main__":
    main()
