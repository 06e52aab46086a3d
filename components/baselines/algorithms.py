"""Popularity, item-kNN and EASE in closed form: fit on a user-item matrix, score batches of users.

Pure numpy and scipy. Every algorithm is a small object with `scores(histories) -> (U, N)`; the
caller decides the batch size, so memory stays bounded by `batch x items`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import scipy.linalg
import scipy.sparse

FloatArray = npt.NDArray[np.float32]

EASE_MAX_ITEMS = 12_000
_NEIGHBOUR_BLOCK_VALUES = 4_000_000
_TINY = np.float32(1e-12)  # Items without users: 0 / tiny = 0, not 0 / 0.


class TooManyItemsError(ValueError):
    """A baseline whose memory grows with the square of the catalogue would not fit."""


class Recommender(Protocol):
    """Scores every item for a batch of users."""

    def scores(self, histories: scipy.sparse.csr_matrix) -> FloatArray:
        """Scores `(users, items)` from binary histories of the same shape; higher is better."""
        ...


@dataclass(frozen=True)
class Popularity:
    """Every user gets the items that the most users met.

    Users, not events: on logs with repeat purchases this is the stronger baseline.

    Attributes:
        users: Users per item, `(items,)`.
    """

    users: npt.NDArray[np.float32]

    def scores(self, histories: scipy.sparse.csr_matrix) -> FloatArray:
        """See `Recommender`."""
        return np.broadcast_to(self.users, histories.shape)


@dataclass(frozen=True)
class ItemKNN:
    """Sum of the similarities of an item to the items in the history.

    Attributes:
        similarity: Sparse `(items, items)`: in each column the largest similarities.
    """

    similarity: scipy.sparse.csr_matrix

    def scores(self, histories: scipy.sparse.csr_matrix) -> FloatArray:
        """See `Recommender`."""
        return np.asarray((histories @ self.similarity).todense(), dtype=np.float32)


@dataclass(frozen=True)
class Ease:
    """Linear autoencoder with zero diagonal.

    Attributes:
        weights: `(items, items)`, diagonal 0.
    """

    weights: FloatArray

    def scores(self, histories: scipy.sparse.csr_matrix) -> FloatArray:
        """See `Recommender`."""
        return np.asarray(histories @ self.weights, dtype=np.float32)


def fit_item_knn(matrix: scipy.sparse.csr_matrix, *, neighbours: int, shrink: float) -> ItemKNN:
    """Cosine similarity with shrinkage: `|u_i & u_j| / (sqrt(|u_i| |u_j|) + shrink)`.

    Source: Sarwar et al., WWW 2001; the shrink term as in Bell and Koren, KDD 2007.

    Args:
        matrix: Binary `(users, items)`.
        neighbours: Most similar items kept for each item.
        shrink: Damps similarities that rest on few users.
    """
    matrix = matrix.astype(np.float32)
    users_of = np.asarray(matrix.sum(axis=0), dtype=np.float32).ravel()
    norms = np.sqrt(users_of)
    num_items = matrix.shape[1]
    transposed = matrix.T.tocsr()
    block_items = max(1, _NEIGHBOUR_BLOCK_VALUES // max(1, num_items))
    blocks = [scipy.sparse.csr_matrix((0, num_items), dtype=np.float32)]
    for start in range(0, num_items, block_items):
        stop = min(num_items, start + block_items)
        block = (transposed[start:stop] @ matrix).toarray()  # (block, items), users in common
        block /= norms[start:stop, np.newaxis] * norms[np.newaxis, :] + max(np.float32(shrink), _TINY)
        block[np.arange(stop - start), np.arange(start, stop)] = 0.0
        blocks.append(_keep_largest(block, neighbours))
    return ItemKNN(scipy.sparse.vstack(blocks, format="csr").T.tocsr())


def fit_ease(matrix: scipy.sparse.csr_matrix, *, l2: float, max_items: int = EASE_MAX_ITEMS) -> Ease:
    """Closed form `B = I - P diag(P)^-1` with `P = (X'X + l2 I)^-1`.

    Source: Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019.

    Args:
        matrix: Binary `(users, items)`.
        l2: Regularisation, > 0.
        max_items: Largest catalogue accepted.

    Raises:
        TooManyItemsError: More items than `max_items`: the inverse takes `4 x items^2` bytes.
    """
    num_items = matrix.shape[1]
    if num_items > max_items:
        raise TooManyItemsError(
            f"EASE inverts a dense items x items matrix ({4e-9 * num_items**2:.1f} GB for {num_items} items); "
            f"it is fitted up to {max_items} items"
        )
    matrix = matrix.astype(np.float32)
    # One dense matrix throughout: LAPACK works in place on Fortran order, on the upper triangle.
    gram = np.asfortranarray((matrix.T @ matrix).toarray())
    gram[np.diag_indices(num_items)] += np.float32(l2)
    factor, info = scipy.linalg.lapack.spotrf(gram, lower=0, overwrite_a=1)
    if info == 0:
        factor, info = scipy.linalg.lapack.spotri(factor, lower=0, overwrite_c=1)
    if info != 0:
        raise ValueError(f"EASE: the regularised matrix is not positive definite; raise ease_l2 above {l2:g}")
    diagonal = factor.diagonal().copy()
    inverse = np.triu(factor, 1)
    inverse += inverse.T
    weights = np.divide(inverse, -diagonal[np.newaxis, :], out=inverse)
    return Ease(np.ascontiguousarray(weights, dtype=np.float32))


def _keep_largest(block: FloatArray, count: int) -> scipy.sparse.csr_matrix:
    """The `count` largest positive values of each row, as a sparse matrix."""
    if count < block.shape[1]:
        columns = np.argpartition(-block, count - 1, axis=1)[:, :count]
    else:
        columns = np.broadcast_to(np.arange(block.shape[1]), block.shape)
    values = np.take_along_axis(block, columns, axis=1)
    rows, positions = np.nonzero(values > 0)
    return scipy.sparse.csr_matrix((values[rows, positions], (rows, columns[rows, positions])), shape=block.shape)
