"""SettingsSearch: TFX's Tuner with the rows of all trials beside the best values."""

from __future__ import annotations

from tfx.components import Tuner
from tfx.dsl.components.base import executor_spec

from components.tuner.executor import Executor


class SettingsSearch(Tuner):
    """TFX's Tuner whose `tuner_results` also hold `trials.json`: values, quality, bytes and latency of every trial."""

    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)


__all__ = ["SettingsSearch"]
