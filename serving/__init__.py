"""The embedded model server, its client and everything to run stock TensorFlow Serving.

Knows SavedModel signatures and the TensorFlow Serving protocol, and nothing of the code that trained the model.
"""

__all__: list[str] = []
