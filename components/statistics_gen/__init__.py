"""Statistics of raw tables: `summaries` does the work, `component` is the TFX node."""

from components.statistics_gen.summaries import FeatureSummary, TableSummary

__all__ = ["FeatureSummary", "TableSummary"]
