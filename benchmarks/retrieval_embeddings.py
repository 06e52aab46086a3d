"""Item and query vectors for `benchmarks/retrieval.py`, from real interactions.

`als` factorises a data set folder with implicit (environment of requirements-peers.txt); `model` asks a served
Tandem model for the vectors of its items and users (the project's environment). Both write `items` and `queries`.
A catalogue of these sizes with public interactions does not exist, so `grow` blends near neighbours and adds noise.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

# Python puts a script's folder first on the path, where `serving.py` would stand in for the package.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

import numpy as np  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

NEIGHBOURS = 10
# Length of the noise as a share of a vector's length.
NOISE = 0.1
CHUNK = 64
CHOOSING = 1000


def grow(base: np.ndarray, count: int, rng: np.random.Generator, *, unit: bool) -> tuple[np.ndarray, np.ndarray]:
    """`count` vectors between random members of `base` `(n, D)` and one of their ten nearest, with noise.

    Args:
        base: Real vectors.
        count: How many to make.
        rng: Source of the choices.
        unit: Scale the results to length 1.

    Returns:
        The vectors `(count, D)`, and the member `(count,)` that each grew from first.
    """
    directions = base / np.maximum(np.linalg.norm(base, axis=1, keepdims=True), 1e-12)
    similarities = directions @ directions.T
    np.fill_diagonal(similarities, -np.inf)
    near = np.argpartition(-similarities, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
    first = rng.integers(0, len(base), count)
    second = near[first, rng.integers(0, NEIGHBOURS, count)]
    share = rng.random((count, 1), dtype=np.float32)
    grown = share * base[first] + (1 - share) * base[second]
    lengths = np.linalg.norm(grown, axis=1, keepdims=True) * np.float32(NOISE / np.sqrt(base.shape[1]))
    grown += lengths * rng.standard_normal(grown.shape, dtype=np.float32)
    if unit:
        grown /= np.linalg.norm(grown, axis=1, keepdims=True)
    return np.asarray(grown, np.float32), first


def exact_top(items: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """Indices `(Q, k)` of the largest inner products, best first."""
    tops = []
    for start in range(0, len(queries), CHUNK):
        scores = queries[start : start + CHUNK] @ items.T
        best = np.argpartition(-scores, k, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
        tops.append(np.take_along_axis(best, order, axis=1))
    return np.concatenate(tops).astype(np.int32)


def data_set(base_file: Path, num_items: int, file: Path) -> dict[str, np.ndarray]:
    """Items, test queries, training queries of other users, and the exact answers; kept in `file`.

    The first `CHOOSING` training queries, by which an index chooses what it reads, come from users of their own, as in
    a pipeline's run.
    """
    if not file.exists():
        base = np.load(base_file)
        unit = bool(np.allclose(np.linalg.norm(base["items"], axis=1), 1, atol=1e-3))
        rng = np.random.default_rng(0)
        users = base["queries"][rng.permutation(len(base["queries"]))]
        test_users, training_users = np.split(users, [len(users) // 5])
        test, _ = grow(test_users, 1000, rng, unit=unit)
        choosing_users, others = np.split(training_users, [len(training_users) // 5])
        choosing, _ = grow(choosing_users, CHOOSING, rng, unit=unit)
        training, _ = grow(others, 10_000 - CHOOSING, rng, unit=unit)
        items, _ = grow(base["items"], num_items, np.random.default_rng(num_items), unit=unit)
        training = np.concatenate([choosing, training])
        np.savez(file, items=items, test=test, training=training, truth=exact_top(items, test, 100))
    return dict(np.load(file))


def als(data: Path) -> dict[str, np.ndarray]:
    """Implicit-ALS factors of all items with five interactions and of all users; lengths as learned."""
    import scipy.sparse

    table = pq.read_table(data / "interactions.parquet", columns=["user_id", "item_id"])
    users, items = (np.unique(table[name].to_numpy(), return_inverse=True)[1] for name in ("user_id", "item_id"))
    kept = np.bincount(items)[items] >= 5
    users, items = users[kept], np.unique(items[kept], return_inverse=True)[1]
    matrix = scipy.sparse.csr_matrix((np.ones(len(users), np.float32), (users, items)))
    queries, vectors = factorize(matrix, 64, 0.05)
    return {"items": vectors, "queries": queries}


def factorize(matrix: Any, factors: int, regularization: float) -> tuple[np.ndarray, np.ndarray]:
    """Factors of users and of items by implicit ALS (Hu, Koren and Volinsky, ICDM 2008), 15 iterations, one thread."""
    from implicit.als import AlternatingLeastSquares

    model = AlternatingLeastSquares(
        factors=factors, regularization=regularization, alpha=1.0, iterations=15, num_threads=1, random_state=0
    )
    model.fit(matrix.astype(np.float32), show_progress=False)
    return np.asarray(model.user_factors, np.float32), np.asarray(model.item_factors, np.float32)


def model_vectors(model_dir: Path, data: Path) -> dict[str, np.ndarray]:
    """Vectors of the items with their ids, and of the users' whole histories, as the served model gives them."""
    import tensorflow as tf

    model = tf.saved_model.load(str(model_dir))
    table = pq.read_table(data / "interactions.parquet").to_pandas().sort_values("timestamp", kind="stable")
    ids = table["item_id"].unique()
    items = model.signatures["embed_items"](item_ids=tf.constant(list(ids)))["embeddings"].numpy()
    histories: list[list[str]] = [list(own)[-100:] for _, own in table.groupby("user_id")["item_id"]]
    queries: list[Any] = []
    for start in range(0, len(histories), CHUNK):
        batch = histories[start : start + CHUNK]
        width = max(map(len, batch))
        padded = tf.constant([[""] * (width - len(history)) + history for history in batch])
        request = {"history": padded, "exclude": tf.zeros([len(batch), 0], tf.string), "k": tf.constant(10)}
        queries.append(model.signatures["embed_query"](**request)["embeddings"].numpy())
    known = np.linalg.norm(items, axis=1) > 0
    return {"items": items[known], "ids": ids[known].astype(str), "queries": np.concatenate(queries)}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", choices=["als", "model"])
    parser.add_argument("--data", type=Path, required=True, help="data set folder with interactions.parquet")
    parser.add_argument("--model", type=Path, help="folder of a served version, for `model`")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    vectors = als(args.data) if args.source == "als" else model_vectors(args.model, args.data)
    np.savez(args.output, **vectors)
    print(f"{vectors['items'].shape} items, {vectors['queries'].shape} queries -> {args.output}")


if __name__ == "__main__":
    main()
