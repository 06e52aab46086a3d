"""Checks of finished sequences: leakage between histories and targets, skew between training and serving."""

from components.sequence_validator.leakage import LeakageCounts, count_leaks, leakage_checks

__all__ = ["LeakageCounts", "count_leaks", "leakage_checks"]
