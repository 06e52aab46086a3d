"""What one run of the graph needs to know, and the names of its streams."""

from __future__ import annotations

from dataclasses import dataclass

from apache_beam.io.filesystems import FileSystems

from components.config import DataConfig
from components.sequence_gen.catalogue import feature_columns
from components.sequence_gen.context import ContextColumn, context_columns
from models.config import FeatureSpec

# Sequences hold short ids; level 4 is 3 % larger than level 6 in half the time.
COMPRESSION_LEVEL = 4
FACTS, ITEM_COUNTS, USERS = "facts", "item_counts", "users"


@dataclass(frozen=True)
class SequenceRequest:
    """Inputs, rules and outputs of one run; plain values, so that Beam can ship it.

    Attributes:
        interactions, items, users: Paths of gzip TFRecord shards of tf.Examples.
        previous_vocabulary: Content of the last run's vocabulary file; empty for a first run.
        data: Columns, cleaning and split rules.
        features: Of both towers.
        num_buckets: Groups of users and shards per split; a property of the data, not of the machine.
        output: Folder that gets `Split-<name>/`; the folders exist.
        partial: Existing folder for files in the making, in the same file system.
        vocabulary_path: Where the vocabulary file is written.
        facts_path: Where the collected facts are written as JSON, last of all.
    """

    interactions: tuple[str, ...]
    items: tuple[str, ...]
    users: tuple[str, ...]
    previous_vocabulary: bytes
    data: DataConfig
    features: tuple[FeatureSpec, ...]
    num_buckets: int
    output: str
    partial: str
    vocabulary_path: str
    facts_path: str

    @property
    def item_columns(self) -> dict[str, str]:
        """Raw keys and source columns of item features."""
        return feature_columns(self.features, "candidate")

    @property
    def user_columns(self) -> dict[str, str]:
        """Raw keys and source columns of user features."""
        return feature_columns(self.features, "query")

    @property
    def context(self) -> tuple[ContextColumn, ...]:
        """Columns of the interactions that context features read."""
        return context_columns(self.features)

    def shard_path(self, split: str, shard: int, num_shards: int) -> str:
        """Path of one output shard."""
        return FileSystems.join(self.output, f"Split-{split}", f"data_tfrecord-{shard:05d}-of-{num_shards:05d}.gz")
