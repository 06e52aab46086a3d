"""Validation of the exact artifact in a real server process, over both protocols."""
