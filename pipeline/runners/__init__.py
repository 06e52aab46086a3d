"""Runners: where and how the nodes of the pipeline are executed."""
