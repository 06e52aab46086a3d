"""A tiny data set in the formats of SequenceGen and Transform, made once per test session."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from models.config import FeatureSpec, LossConfig, ModelConfig, TrainingConfig, TwoTowerConfig

NUM_ITEMS = 12
NUM_USERS = 40
DAY = 86_400
START = 1_000_000_800  # 2001-09-09 02:00:00 UTC, a Sunday

FEATURES = (
    FeatureSpec(name="category", kind="categorical", tower="candidate", vocabulary_size=10, embedding_dim=4),
    FeatureSpec(name="tags", kind="multi_valued", tower="candidate", vocabulary_size=10, embedding_dim=4, max_values=3),
    FeatureSpec(name="price", kind="numeric", tower="candidate", normalization="log"),
    FeatureSpec(name="size", kind="numeric", tower="candidate", normalization="bucketize", num_buckets=3),
    FeatureSpec(name="launch", kind="timestamp", tower="candidate", embedding_dim=4),
    FeatureSpec(
        name="title", kind="text", tower="candidate", vocabulary_size=50, ngrams=2, max_values=6, embedding_dim=4
    ),
    FeatureSpec(name="age", kind="numeric", tower="query"),
    FeatureSpec(name="country", kind="categorical", tower="query", vocabulary_size=5, oov_buckets=2, embedding_dim=4),
)


@dataclasses.dataclass(frozen=True)
class Transformed:
    """Where the fixture wrote its files."""

    transform_graph: str
    patterns: dict[str, list[str]]
    config: TwoTowerConfig
    raw: dict[str, list[dict]]


def tiny_config() -> TwoTowerConfig:
    return TwoTowerConfig(
        features=FEATURES,
        model=ModelConfig(embedding_dim=8, num_layers=1, num_heads=2, max_history_length=6, dropout=0.0),
        loss=LossConfig(),
        training=TrainingConfig(epochs=2, batch_size=8, warmup_steps=2, learning_rate=0.01, strategy="one_device"),
    )


def raw_records() -> dict[str, list[dict]]:
    """Raw records by split; every fourth item and user lacks its optional features."""
    rng = np.random.default_rng(7)
    catalogue = []
    for row in range(1, NUM_ITEMS + 1):
        record: dict = {"item_id": [f"i{row}"], "item_row": [row], "item_live": [int(row != 3)]}
        record["item_train_events"] = [row]
        if row % 4:
            record |= {
                "item_category": [f"c{row % 3}"],
                "item_tags": [f"t{tag}" for tag in range(row % 5)],
                "item_price": [float(row)],
                "item_size": [row],
                "item_launch": [START - row * DAY],
                "item_title": [f"Red, BOX-{row} for the café!"],
            }
        catalogue.append(record)
    splits: dict[str, list[dict]] = {"catalogue": catalogue, "train": [], "validation": [], "all": []}
    for user in range(NUM_USERS):
        length = int(rng.integers(3, 15))
        items = [f"i{1 + (user + step) % NUM_ITEMS}" for step in range(length)]
        times = [START - (length - step) * 3600 for step in range(length)]
        base: dict = {"user_id": [f"u{user}"]}
        if user % 4:
            base |= {"user_age": [20 + user], "user_country": [f"k{user % 3}"]}
        train = {"history": items[:-1], "history_timestamps": times[:-1]}
        splits["train"].append(base | train)
        train = {key: list(values) for key, values in train.items()}
        splits["validation"].append(base | train | {"targets": items[-1:], "target_timestamps": times[-1:]})
        splits["all"].append(base | {"history": items, "history_timestamps": times})
    splits["validation"][0]["history"][0] = "never seen"
    return splits


def serialize(record: dict) -> bytes:
    from models.keras import tf

    features = {}
    for key, values in record.items():
        if isinstance(values[0], str) if values else False:
            feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[v.encode() for v in values]))
        elif values and isinstance(values[0], float):
            feature = tf.train.Feature(float_list=tf.train.FloatList(value=values))
        else:
            feature = tf.train.Feature(int64_list=tf.train.Int64List(value=values))
        if values:
            features[key] = feature
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def raw_schema():
    """Schema of all raw keys, every one of variable length."""
    import tensorflow_metadata.proto.v0.schema_pb2 as schema_pb2

    kinds = {str: schema_pb2.BYTES, int: schema_pb2.INT, float: schema_pb2.FLOAT}
    found = {}
    for records in raw_records().values():
        for record in records:
            for key, values in record.items():
                if values:
                    found[key] = kinds[type(values[0])]
    schema = schema_pb2.Schema()
    for key, kind in sorted(found.items()):
        feature = schema.feature.add(name=key, type=kind)
        feature.value_count.min = 0
    return schema


@pytest.fixture(scope="session")
def transformed(tmp_path_factory: pytest.TempPathFactory) -> Transformed:
    """Runs TFT on the raw records, as the Transform component does."""
    return run_transform(tmp_path_factory.mktemp("transform"))


def write_vocabularies(folder: Path, records: dict[str, list[dict]]) -> str:
    """What the Transform component writes before TFT runs: words by falling count, then by text."""
    counts: dict[str, Counter[str]] = {}
    for split, tower in (("catalogue", "candidate"), ("train", "query")):
        for spec in (f for f in FEATURES if f.tower == tower and f.kind in ("categorical", "multi_valued")):
            width = spec.max_values if spec.kind == "multi_valued" else 1
            words = [word for record in records[split] for word in record.get(spec.raw_name, [])[:width]]
            counts[f"vocabulary_{spec.transformed_name}"] = Counter(words)
    target = folder / "vocabularies"
    target.mkdir()
    (target / "items").write_text("".join(f"{record['item_id'][0]}\n" for record in records["catalogue"]))
    for name, found in counts.items():
        words = sorted(found, key=lambda word, found=found: (-found[word], word))
        (target / name).write_text("".join(f"{word}\n" for word in words))
    return str(target)


def run_transform(folder: Path) -> Transformed:
    from models.preprocessing import preprocessing_fn

    # isort: split
    import apache_beam as beam
    import tensorflow_transform.beam as tft_beam
    from tensorflow_transform.tf_metadata import metadata_io
    from tensorflow_transform.tf_metadata.dataset_metadata import DatasetMetadata
    from tfx_bsl.coders.example_coder import RecordBatchToExamplesEncoder
    from tfx_bsl.tfxio import tf_example_record

    config, records, schema = tiny_config(), raw_records(), raw_schema()
    source = tf_example_record.TFExampleBeamRecord(
        physical_format="inmem", telemetry_descriptors=["test"], schema=schema
    )
    adapter = source.TensorAdapterConfig()
    patterns: dict[str, list[str]] = {}
    custom_config = {"two_tower": config.model_dump_json(), "vocabularies": write_vocabularies(folder, records)}
    with beam.Pipeline(runner="DirectRunner") as pipeline, tft_beam.Context(temp_dir=str(folder / "tmp")):
        read = {
            split: pipeline
            | f"create_{split}" >> beam.Create([serialize(record) for record in rows], reshuffle=False)
            | f"decode_{split}" >> source.BeamSource()
            for split, rows in records.items()
        }
        analyzed = (read["catalogue"], read["train"]) | beam.Flatten()
        graph = (analyzed, adapter) | tft_beam.AnalyzeDataset(lambda inputs: preprocessing_fn(inputs, custom_config))
        graph | tft_beam.WriteTransformFn(str(folder / "graph"))
        metadata_io.write_metadata(DatasetMetadata(schema), str(folder / "graph" / "metadata"))
        for split, batches in read.items():
            rows, metadata = ((batches, adapter), graph) | f"transform_{split}" >> tft_beam.TransformDataset(
                output_record_batches=True
            )
            prefix = folder / "examples" / f"Split-{split}" / "transformed_examples"
            encoder = RecordBatchToExamplesEncoder(metadata.schema)
            (
                rows
                | f"encode_{split}" >> beam.FlatMapTuple(lambda batch, _, encoder=encoder: encoder.encode(batch))
                | f"write_{split}" >> beam.io.WriteToTFRecord(str(prefix), file_name_suffix=".gz")
            )
            patterns[split] = [str(prefix.parent / "*")]
    return Transformed(str(folder / "graph"), patterns, config, records)
