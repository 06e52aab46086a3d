"""Validation that blocks: `checks` and `anomalies` are pure, `component` is the TFX node."""

from components.example_validator.anomalies import describe, drop_undeclared
from components.example_validator.checks import Check, check_interactions, check_items, check_users

__all__ = ["Check", "check_interactions", "check_items", "check_users", "describe", "drop_undeclared"]
