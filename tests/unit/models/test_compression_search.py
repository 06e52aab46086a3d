"""The Compressor's work on a tiny data set: real fine-tuning, real exports, a real server process."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from conftest import raw_schema, serialize

from models.keras import tf


def write_records(folder: Path, records: list[dict]) -> None:
    folder.mkdir(parents=True)
    with tf.io.TFRecordWriter(str(folder / "data-00000.gz"), tf.io.TFRecordOptions("GZIP")) as writer:
        for record in records:
            writer.write(serialize(record))


@pytest.mark.serving
def test_every_variant_is_measured_and_one_is_written(transformed, tmp_path, capsys, monkeypatch):
    from tensorflow_transform.tf_metadata import dataset_metadata, metadata_io

    from components.compressor.compression import CompressionInputs, compress
    from components.compressor.measure import measure
    from models.compression.pruning import zero_share
    from models.config import CompressionConfig
    from models.export import Catalogue, ServedTowers, export_saved_model
    from models.input_pipeline import load_training_data
    from models.trainer import train, user_histories
    from models.two_tower import load

    metadata_io.write_metadata(
        dataset_metadata.DatasetMetadata(raw_schema()), f"{transformed.transform_graph}/metadata"
    )
    config = transformed.config.model_copy(
        update={
            "compression": CompressionConfig(
                variants=("int8", "prune50+qat+int4", "width4+int8", "width8"),
                student_epochs=2,
                combine=False,
                max_loss=1.0,
                max_slice_loss=1.0,
                latency_requests=20,
                max_seconds=1e6,  # how fast this machine is decides nothing here
            )
        }
    )
    write_records(tmp_path / "sequences" / "Split-validation", transformed.raw["validation"])
    transformed_uri = str(Path(transformed.patterns["train"][0]).parent.parent)
    data = load_training_data(transformed.patterns, transformed.transform_graph, config)
    model = train(config, data).model
    model.save(tmp_path / "trained" / "training")
    export_saved_model(
        str(tmp_path / "trained" / "Format-Serving"),
        ServedTowers.of(model),
        Catalogue(data.items.live, data.items.train_events),
        user_histories(data),
        transform_graph_dir=transformed.transform_graph,
    )
    inputs = CompressionInputs(
        serving_dir=str(tmp_path / "trained" / "Format-Serving"),
        training_dir=str(tmp_path / "trained" / "training"),
        transformed_uri=transformed_uri,
        transform_graph_dir=transformed.transform_graph,
        sequences_uri=str(tmp_path / "sequences"),
        cache_dir=str(tmp_path / "rows"),
    )
    references = []

    def measured_beside(base_path, workload, reference, *others):
        references.append(reference)
        return measure(base_path, workload, reference, *others)

    monkeypatch.setattr("components.compressor.compression.measure", measured_beside)
    rows = compress(
        config,
        inputs,
        output_serving_dir=str(tmp_path / "chosen" / "Format-Serving"),
        output_training_dir=str(tmp_path / "chosen" / "training"),
    )
    print(capsys.readouterr().out)
    by_name = {row.name: row for row in rows}
    assert list(by_name) == ["float32", "int8", "prune50+qat+int4", "width4+int8", "width8"]
    refused = rows.pop()
    assert refused.measurement is None and "a student is smaller than its teacher" in refused.reason
    # float32 too is asked in turn with another server: alone it would seem quicker than what is compared with it.
    assert len(references) == 4 and None not in references
    assert by_name["float32"].measurement.time_ratio == 1.0
    sizes = [by_name[name].measurement.saved_model_bytes for name in ("width4+int8", "int8")]
    assert sizes[0] < sizes[1]
    assert sum(row.chosen for row in rows) == 1
    for row in rows:
        assert row.reason
        measured = dataclasses.asdict(row.measurement)
        assert measured["metrics"]["queries"] == len(transformed.raw["validation"])
        assert min(measured[name] for name in ("gzip_bytes", "resident_bytes", "p50_ms", "p99_ms")) > 0
    served = tf.saved_model.load(str(tmp_path / "chosen" / "Format-Serving"))
    assert len(served.signatures) == 6
    chosen = load(tmp_path / "chosen" / "training")
    name = next(row.name for row in rows if row.chosen)
    assert chosen.config.model.embedding_dim == (4 if "width4" in name else 8)
    is_pruned = "prune" in name
    assert (zero_share(chosen) > 0.4) == is_pruned
