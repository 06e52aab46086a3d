"""Top-k retrieval inside the served graph, behind one contract (`tests/contracts/test_top_k.py`).

A retriever is a `tf.Module` called with `(query (B, D), k (), excluded_rows (B, E))` that returns
`(scores (B, K), rows (B, K))`, best first, K = min(k, live items), never an excluded, retired or padding row;
`of_items=True` says that the queries are vectors of items.
Importing this package imports no TensorFlow; import the modules.
"""
