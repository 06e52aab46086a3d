"""Composition of the pipeline: configuration, presets, runners, report and the `tandem` command."""
