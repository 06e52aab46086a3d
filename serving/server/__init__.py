"""The embedded model server: TensorFlow Serving's protocol, flags and manners in one Python process.

Read in this order: `process.py` puts the parts together; `versions.py` watches the disk and swaps versions;
`core.py` answers requests; `grpc_api.py` and `rest_api.py` speak the protocols; `saved_model.py` runs the graph.
"""

from serving.server.main import main

__all__ = ["main"]
