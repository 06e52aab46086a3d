"""Clean histories of every user, split by time without leakage; `component.py` is the TFX interface."""

from components.sequence_gen.histories import Histories, build_histories
from components.sequence_gen.splits import Split, TimeCuts, global_time, leave_last_two_out

__all__ = ["Histories", "Split", "TimeCuts", "build_histories", "global_time", "leave_last_two_out"]
