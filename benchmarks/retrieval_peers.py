"""Peers of `benchmarks/retrieval.py`; runs in the environment of requirements-peers.txt, one engine a process.

`build` makes an index with the parameters its project recommends and writes it; `measure` loads it, takes the fastest
search parameter that reaches the recall target *on the test queries* (which favours the peers: Tandem chooses its own
on other queries) and times it on one thread.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

# Python puts a script's folder first on the path, where `serving.py` would stand in for the package.
_HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _HERE] + [str(_HERE.parent)]

import numpy as np  # noqa: E402

from benchmarks.retrieval_timing import Search, recall, resident_bytes, timed  # noqa: E402

# (parameter, search of a batch, search of one query) from the cheapest parameter up
Variants = Iterator[tuple[str, Search, Callable[[np.ndarray], Any]]]


def build_scann(items: np.ndarray, folder: Path) -> None:
    """Tree, asymmetric hashing of two dimensions a block, re-ordering, as in ScaNN's guide; 2 sqrt(N) leaves."""
    import scann

    builder = scann.scann_ops_pybind.builder(items, 10, "dot_product").set_n_training_threads(1)
    leaves = int(2 * np.sqrt(len(items)))
    builder = builder.tree(num_leaves=leaves, num_leaves_to_search=20, training_sample_size=min(len(items), 200_000))
    searcher = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(100).build()
    searcher.serialize(str(folder))


def search_scann(folder: Path, k: int) -> Variants:
    import scann

    searcher = scann.scann_ops_pybind.load_searcher(str(folder))
    for leaves in (4, 8, 12, 16, 24, 32, 48, 64, 96, 128):
        for reorder in (100, 300, 1000) if k == 10 else (300, 1000, 2000):
            options = {
                "final_num_neighbors": k,
                "leaves_to_search": leaves,
                "pre_reorder_num_neighbors": reorder,
            }
            yield (
                f"leaves {leaves}, reorder {reorder}",
                lambda q, o=options: searcher.search_batched(q, **o)[0],
                lambda q, o=options: searcher.search(q, **o),
            )


def build_faiss_ivf(items: np.ndarray, folder: Path) -> None:
    import faiss

    lists = int(4 * np.sqrt(len(items)))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(items.shape[1]), items.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter = 8
    index.train(items)
    index.add(items)
    faiss.write_index(index, str(folder / "index"))


def search_faiss_ivf(folder: Path, k: int) -> Variants:
    import faiss

    faiss.omp_set_num_threads(1)
    index = faiss.read_index(str(folder / "index"))
    for probes in (2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256):

        def search(q: np.ndarray, probes: int = probes) -> np.ndarray:
            index.nprobe = probes
            return index.search(q, k)[1]

        yield f"nprobe {probes}", search, lambda q, s=search: s(q[None])


def build_hnswlib(items: np.ndarray, folder: Path) -> None:
    import hnswlib

    index = hnswlib.Index("ip", items.shape[1])
    index.init_index(len(items), M=16, ef_construction=100)
    index.add_items(items, num_threads=1)
    index.save_index(str(folder / "index"))


def search_hnswlib(folder: Path, k: int) -> Variants:
    import hnswlib

    index = hnswlib.Index("ip", 64)
    index.load_index(str(folder / "index"))
    index.set_num_threads(1)
    for ef in (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024):
        if ef < k:
            continue

        def search(q: np.ndarray, ef: int = ef) -> np.ndarray:
            index.set_ef(ef)
            return index.knn_query(q, k, num_threads=1)[0].astype(np.int64)

        yield f"ef {ef}", search, search


def build_usearch(items: np.ndarray, folder: Path) -> None:
    from usearch.index import Index

    index = Index(ndim=items.shape[1], metric="ip", dtype="f32", connectivity=16, expansion_add=100)
    index.add(np.arange(len(items)), items, threads=1)
    index.save(str(folder / "index"))


def search_usearch(folder: Path, k: int) -> Variants:
    from usearch.index import Index

    index = Index.restore(str(folder / "index"))
    for expansion in (16, 32, 64, 96, 128, 192, 256, 512, 1024):

        def search(q: np.ndarray, expansion: int = expansion) -> np.ndarray:
            index.expansion_search = expansion
            return index.search(q, k, threads=1).keys.astype(np.int64)

        yield f"expansion {expansion}", search, search


def build_voyager(items: np.ndarray, folder: Path) -> None:
    from voyager import Index, Space

    index = Index(Space.InnerProduct, num_dimensions=items.shape[1], M=16, ef_construction=100)
    index.add_items(items, num_threads=1)
    index.save(str(folder / "index"))


def search_voyager(folder: Path, k: int) -> Variants:
    from voyager import Index

    index = Index.load(str(folder / "index"))
    for ef in (16, 32, 64, 96, 128, 192, 256, 512, 1024):
        if ef < k:
            continue
        yield (
            f"ef {ef}",
            lambda q, ef=ef: index.query(q, k=k, num_threads=1, query_ef=ef)[0].astype(np.int64),
            lambda q, ef=ef: index.query(q, k=k, num_threads=1, query_ef=ef),
        )


BUILDERS: dict[str, Callable[[np.ndarray, Path], None]] = {
    "ScaNN": build_scann,
    "faiss IVF": build_faiss_ivf,
    "hnswlib": build_hnswlib,
    "usearch": build_usearch,
    "voyager": build_voyager,
}
SEARCHERS: dict[str, Callable[[Path, int], Variants]] = {
    "ScaNN": search_scann,
    "faiss IVF": search_faiss_ivf,
    "hnswlib": search_hnswlib,
    "usearch": search_usearch,
    "voyager": search_voyager,
}


def build(engine: str, data_file: Path, folder: Path) -> dict[str, Any]:
    """Builds an index in `folder`, unless it is there."""
    done = folder / "build.json"  # written last; ScaNN's files name the folder they were written to
    if not done.exists():
        items = np.load(data_file)["items"]
        folder.mkdir(parents=True, exist_ok=True)
        start = time.process_time()
        BUILDERS[engine](items, folder)
        done.write_text(json.dumps({"build_cpu_seconds": time.process_time() - start}))
    found: dict[str, Any] = json.loads(done.read_text())
    return found


def measure(engine: str, data_file: Path, folder: Path, target: float, seconds: float) -> list[dict[str, Any]]:
    """A row for each k: the fastest search that reaches `target`, timed."""
    data = np.load(data_file)
    queries, truth = data["test"], data["truth"]
    rows: list[dict[str, Any]] = []
    before, resident = resident_bytes(), 0
    for k in (10, 100):
        best: dict[str, Any] | None = None
        calls: tuple[Any, Search] | None = None
        for name, search, search_one in SEARCHERS[engine](folder, k):
            resident = resident or resident_bytes() - before
            if recall(search, queries[:320], truth, k) < target - 0.01:
                continue
            found = recall(search, queries, truth, k)
            if found < target:
                continue
            quick = timed(search_one, search, queries[:64], seconds / 10)
            if best is not None and quick["b1_p50"] > 1.5 * best["b1_p50"]:
                break
            if best is None or quick["b1_p50"] < best["b1_p50"]:
                best, calls = {"parameter": name, "recall": found, **quick}, (search_one, search)
        if best is not None and calls is not None:
            rows.append({"engine": engine, "k": k, **best, **timed(*calls, queries, seconds), "resident": resident})
    return rows


def main() -> None:
    """`retrieval_peers.py {build,measure} ENGINE DATA FOLDER [TARGET SECONDS]`: prints JSON."""
    action, engine, data_file, folder = sys.argv[1:5]
    if action == "build":
        print(json.dumps(build(engine, Path(data_file), Path(folder))))
    else:
        print(json.dumps(measure(engine, Path(data_file), Path(folder), float(sys.argv[5]), float(sys.argv[6]))))


if __name__ == "__main__":
    main()
