"""Finds the cheapest form of a trained model that keeps its quality, measured as it will be served.

`search` decides (pure), `variants` builds, `measure` asks a model server process, `component` is the
TFX node.
"""
