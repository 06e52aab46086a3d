"""The TFX interface: specification, and an executor run from artifacts to artifacts."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
from tfx.types import artifact_utils, channel_utils, standard_artifacts

from components.arrow_example_gen.encoding import encode_examples
from components.arrow_example_gen.record_files import write_records
from components.artifacts import DataSummary, ItemVocabulary
from components.config import DataConfig, SplitConfig
from components.sequence_gen.component import SequenceGen
from components.sequence_gen.executor import SequenceGenExecutor
from models.config import FeatureSpec

FEATURES = [FeatureSpec(name="tags", kind="multi_valued", tower="candidate").model_dump_json()]
CONFIG = DataConfig(split=SplitConfig(min_item_events=1)).model_dump_json()


def examples(folder: Path, columns: dict[str, list[list[object]]]) -> standard_artifacts.Examples:
    artifact = standard_artifacts.Examples()
    artifact.uri = str(folder)
    artifact.split_names = '["all"]'
    (folder / "Split-all").mkdir(parents=True)
    batch = pa.RecordBatch.from_pydict(
        {n: pa.array(v).cast(pa.large_list(pa.array(v[0]).type)) for n, v in columns.items()}
    )
    write_records(str(folder / "Split-all" / "part-0.gz"), [encode_examples(batch)], str(folder), compression_level=1)
    return artifact


def test_artifacts_in_artifacts_out(tmp_path: Path) -> None:
    count = 6
    interactions = examples(
        tmp_path / "interactions",
        {
            "user_id": [[b"u"]] * count,
            "item_id": [[b"i%d" % i] for i in range(count)],
            "timestamp": [[i] for i in range(count)],
            "_row": [[i] for i in range(count)],
        },
    )
    items = examples(tmp_path / "items", {"item_id": [[b"i0"]], "tags": [[b"t"]]})
    previous = ItemVocabulary()
    previous.uri = str(tmp_path / "previous")
    Path(previous.uri).mkdir()
    (Path(previous.uri) / "items.txt").write_bytes(b"i3\n")
    component = SequenceGen(
        channel_utils.as_channel([interactions]),
        channel_utils.as_channel([items]),
        previous_vocabulary=channel_utils.as_channel([previous]),
        config=CONFIG,
        features=FEATURES,
        code_version="1",
    )
    assert set(component.outputs) == {"examples", "schema", "vocabulary", "summary"}
    outputs = {}
    for name, kind in (
        ("examples", standard_artifacts.Examples),
        ("schema", standard_artifacts.Schema),
        ("vocabulary", ItemVocabulary),
        ("summary", DataSummary),
    ):
        artifact = kind()
        artifact.uri = str(tmp_path / "out" / name)
        Path(artifact.uri).mkdir(parents=True)
        outputs[name] = [artifact]
    context = BaseBeamExecutor.Context(beam_pipeline_args=["--runner=FnApiRunner"])
    SequenceGenExecutor(context).Do(
        {"interactions": [interactions], "items": [items], "previous_vocabulary": [previous]},
        outputs,
        component.exec_properties,
    )
    (written,) = outputs["examples"]
    names = artifact_utils.decode_split_names(written.split_names)
    assert names == ["catalogue", "train", "validation", "test", "all"]
    assert all(list(Path(written.uri, f"Split-{name}").glob("*.gz")) for name in names)
    assert written.get_string_custom_property("payload_format") == "FORMAT_TF_EXAMPLE"
    assert Path(outputs["vocabulary"][0].uri, "items.txt").read_bytes() == b"i3\ni0\ni1\ni2\ni4\ni5\n"
    summary = json.loads(Path(outputs["summary"][0].uri, "summary.json").read_text(encoding="utf-8"))
    assert summary["train"] == {"events": 4, "users": 1}
    assert Path(outputs["schema"][0].uri, "schema.pbtxt").exists()
