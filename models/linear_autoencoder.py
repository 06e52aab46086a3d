"""Item-to-item regression in closed form, as a two-tower model of `embedding_dim` dimensions.

EASE (Steck, WWW 2019) regresses each item's column of the user-item matrix X on all others. With the eigenvectors V and
eigenvalues s of X'X its weights are, off the diagonal, `B = V diag(s / (s + l2)) V' diag(1 / (l2 P_jj))` with
`P = (X'X + l2 I)^-1`. Answers leave out the items of the history, so the diagonal is never read, and the first
`embedding_dim` eigenvectors give the best approximation by a product of two tables: one row per item of a history, one
per candidate. Scores are estimates of probabilities, not logits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import linalg

from models.history_encoders import HISTORY_ITEMS
from models.training_data import Ragged
from models.two_tower import TwoTowerModel

DENSE_LIMIT = 6000
# Scores of the best items then lie near 1, which the popularity trend's likelihood fit starts from.
SCALE = 100.0


def user_item_matrix(histories: Ragged, num_items: int) -> sparse.csr_matrix:
    """Binary `(users, num_items + 1)`; unknown items (row 0) left out."""
    owners = np.repeat(np.arange(len(histories)), histories.lengths)
    known = histories.values > 0
    ones = np.ones(int(known.sum()), dtype=np.float32)
    matrix = sparse.csr_matrix(
        (ones, (owners[known], histories.values[known])), shape=(len(histories), num_items + 1), dtype=np.float32
    )
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    return matrix


def leading_eigenvectors(matrix: sparse.csr_matrix, dim: int, seed: int) -> tuple[NDArray, NDArray]:
    """The largest eigenvalues `(dim,)`, in falling order, and eigenvectors `(columns, dim)` of `matrix' matrix`."""
    columns = matrix.shape[1]
    if columns <= DENSE_LIMIT or dim >= min(matrix.shape) - 1:
        values, vectors = np.linalg.eigh((matrix.T @ matrix).toarray().astype(np.float64))
        order = np.argsort(-values)[:dim]
        return np.maximum(values[order], 0.0), vectors[:, order]
    start = np.random.default_rng(seed).normal(size=min(matrix.shape))
    _, singular, right = linalg.svds(matrix.astype(np.float64), k=dim, v0=start)
    order = np.argsort(-singular)
    return singular[order] ** 2, right[order].T


def factorized_regression(
    histories: Ragged, num_items: int, dim: int, l2: float, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """EASE's item-to-item weights as a product of two tables.

    Args:
        histories: Item rows, 0 = unknown.
        num_items: Items of the catalogue, N.
        dim: Width of the tables.
        l2: Ridge penalty, in events.
        seed: Of the iterative decomposition of large catalogues.

    Returns:
        Tables of history items and of candidates, each `(N + 1, dim)` with zeros in row 0; the score of candidate j for
        a history is the sum over its items i of `inputs[i] @ outputs[j]`.
    """
    values, vectors = leading_eigenvectors(user_item_matrix(histories, num_items), dim, seed)
    gain = values / (values + l2)
    # l2 P_jj = 1 - sum over eigenvectors of gain V_jj^2; the eigenvalues left out count as 0.
    diagonal = 1.0 - np.sum(vectors**2 * gain, axis=1)
    inputs = vectors * np.sqrt(gain)
    outputs = inputs / np.maximum(diagonal, 1e-6)[:, np.newaxis]
    tables = np.zeros((2, num_items + 1, dim), dtype=np.float32)
    tables[0, :, : len(values)], tables[1, :, : len(values)] = inputs, outputs
    tables[:, 0] = 0.0
    return tables[0], tables[1]


def solve(model: TwoTowerModel, histories: Ragged, l2: float, seed: int = 0) -> None:
    """Sets the weights of a model with the `wide` encoder to the factorised regression.

    The encoder's token is the sum of an item's candidate vector and its wide vector, so the wide table takes the
    difference; all distances count alike and the output projection is the identity.

    Args:
        model: Freshly built, `history_encoder = "wide"`.
        histories: Train histories.
        l2: Ridge penalty, in events.
        seed: See `factorized_regression`.
    """
    inputs, outputs = factorized_regression(histories, model.num_items, model.config.model.embedding_dim, l2, seed)
    inputs, outputs = balanced(inputs, outputs, user_item_matrix(histories, model.num_items) @ inputs)
    inputs *= SCALE
    set_tables(model, inputs, outputs)
    encoder = model.history_encoder
    decay, projection = encoder.get_layer("mean"), encoder.get_layer("output_projection")
    decay.log_weights.assign(np.zeros(decay.log_weights.shape, np.float32))
    projection.kernel.assign(np.eye(projection.kernel.shape[0], dtype=np.float32))
    projection.bias.assign(np.zeros(projection.bias.shape, np.float32))


def balanced(
    inputs: NDArray[np.float32], outputs: NDArray[np.float32], queries: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The two tables with the same scores, in columns that count alike for queries and for candidates.

    A factor on a column of one table and its inverse on the other leave every score as it is. Here a column of the
    candidates has the root mean square of that column of the queries: what a rounding error costs, and what a removed
    column costs, can then be read from the vectors alone.

    Args:
        inputs, outputs: `(N + 1, dim)`, as from `factorized_regression`.
        queries: Sums of inputs over histories, `(users, dim)`.
    """
    asked, answered = (np.sqrt(np.mean(np.square(values), axis=0)) for values in (queries, outputs))
    used = (asked > 0) & (answered > 0)
    factor = np.sqrt(np.divide(asked, answered, out=np.ones_like(asked), where=used))
    inputs, outputs = inputs / factor, outputs * factor
    sizes = float(np.linalg.norm(inputs)), float(np.linalg.norm(outputs))
    even = (sizes[0] / sizes[1]) ** 0.5 if min(sizes) > 0 else 1.0
    return inputs / np.float32(even), outputs * np.float32(even)


def set_tables(model: TwoTowerModel, inputs: NDArray, outputs: NDArray) -> None:
    """Sets the vectors of history items and of candidates, each `(N + 1, D)`, of a model with the `wide` encoder."""
    model.candidate_tower.get_layer("item_id_embedding").embeddings.assign(outputs)
    model.history_encoder.get_layer(HISTORY_ITEMS).embeddings.assign(inputs - outputs)


def scale_candidates(model: TwoTowerModel, factors: NDArray) -> None:
    """Multiplies every score of item j by `factors[j]`, `(N + 1,)`; what histories say stays as it is."""
    outputs = model.candidate_tower.get_layer("item_id_embedding").embeddings.numpy()
    wide = model.history_encoder.get_layer(HISTORY_ITEMS).embeddings.numpy()
    set_tables(model, outputs + wide, outputs * factors[:, np.newaxis].astype(np.float32))


__all__ = ["factorized_regression", "leading_eigenvectors", "scale_candidates", "solve", "user_item_matrix"]
