"""Implicit ALS for `benchmarks/quality.py time-split`: `als_baseline.py MATRIX.npz FACTORS.npz REGULARIZATION`.

Runs in the environment of requirements-peers.txt. MATRIX holds users by items in scipy's format; FACTORS gets `users`
and `items`, whose products are the scores. 128 factors, confidence 1 for every item of a user, 15 iterations.
"""

from __future__ import annotations

import sys

import numpy as np
import scipy.sparse
from retrieval_embeddings import factorize  # beside this file


def main() -> None:
    """Reads, factorises, writes."""
    matrix_file, factors_file, regularization = sys.argv[1:4]
    users, items = factorize(scipy.sparse.load_npz(matrix_file), 128, float(regularization))
    np.savez(factors_file, users=users, items=items)


if __name__ == "__main__":
    main()
