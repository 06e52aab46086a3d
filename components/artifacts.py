"""Artifact types of Tandem's own components and the names of the files inside them."""

from __future__ import annotations

from tfx.types.artifact import Artifact


class ItemVocabulary(Artifact):
    """Item ids in row order: line n of `items.txt` (from 0) is row n + 1; row 0 is padding.

    Rows never change between runs: the next run's vocabulary starts with these lines.
    """

    TYPE_NAME = "TandemItemVocabulary"


class DataSummary(Artifact):
    """`summary.json`: counts, dropped rows by reason, split sizes, checks and their verdicts."""

    TYPE_NAME = "TandemDataSummary"


class BaselineMetrics(Artifact):
    """`baselines.json`: metrics of popularity, item-kNN and EASE on the test split."""

    TYPE_NAME = "TandemBaselineMetrics"


class CompressionReport(Artifact):
    """`variants.json`: one row per variant, with measurements, verdict and reason."""

    TYPE_NAME = "TandemCompressionReport"


ITEM_VOCABULARY_FILE = "items.txt"
SUMMARY_FILE = "summary.json"
BASELINES_FILE = "baselines.json"
VARIANTS_FILE = "variants.json"
TRIALS_FILE = "trials.json"
RETRIEVAL_METRICS_FILE = "retrieval_metrics.json"
TRAINING_FOLDER = "training"
# Of a trained model: weights fitted in the same way on all events, for the push.
REFITTED_FOLDER = "training_refitted"
# Inside a transform graph: one file per vocabulary, line n (from 0) is row n + 1, and what changed in them.
VOCABULARIES_FOLDER = "vocabularies"
VOCABULARIES_SUMMARY_FILE = "summary.json"
# Verdicts of a validator, inside its anomalies.
CHECKS_FILE = "checks.json"
# Custom property of statistics: the table they describe.
TABLE_PROPERTY = "table"
