"""TFX executor: pieces of the input files, each read, encoded and written as one shard by one Beam element."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import apache_beam as beam
import pyarrow as pa
from tfx import types
from tfx.components.example_gen import write_split
from tfx.components.util import examples_utils
from tfx.dsl.components.base import base_beam_executor
from tfx.dsl.io import fileio
from tfx.proto import example_gen_pb2
from tfx.types import artifact_utils

from components.arrow_example_gen.columns import Column, columns_from_json
from components.arrow_example_gen.driver import INPUT_FILES
from components.arrow_example_gen.encoding import encode_examples
from components.arrow_example_gen.planning import Piece, plan_pieces
from components.arrow_example_gen.reading import BadRow, read_piece
from components.arrow_example_gen.record_files import write_records
from components.arrow_example_gen.remote_files import file_access
from components.arrow_example_gen.rules import check_bad_rows
from components.arrow_example_gen.sources import SourceFile
from components.errors import InputError

SPLIT = "all"
SUMMARY_FILE = "ingest.json"
BAD_ROWS_FOLDER = "bad_rows"
COMPRESSION_LEVEL = 1
_FIRST_BAD_ROWS = 5


class Executor(base_beam_executor.BaseBeamExecutor):
    """Reads the files that the driver found and writes gzip TFRecord shards of tf.Examples.

    Beside the split the artifact holds `ingest.json` (rows, bad rows by reason, files) and, if there are
    any, `bad_rows/part-*.jsonl` with file, line, column, reason and text.
    """

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Runs the ingest.

        Raises:
            InputError: A file is damaged, or more rows are bad than the preset allows.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        artifact = artifact_utils.get_single_instance(output_dict["examples"])
        artifact.split_names = artifact_utils.encode_split_names([SPLIT])
        examples_utils.set_payload_format(artifact, example_gen_pb2.FORMAT_TF_EXAMPLE)
        examples_utils.set_file_format(artifact, write_split.to_file_format_str(example_gen_pb2.FORMAT_TFRECORDS_GZIP))
        base, table = exec_properties["input_base"], exec_properties["table"]
        columns = columns_from_json(exec_properties["columns"])
        sources = [SourceFile(**record) for record in json.loads(exec_properties[INPUT_FILES])]
        pieces = list(plan_pieces(sources, columns, files=file_access(base)))
        fileio.makedirs(artifact_utils.get_split_uri([artifact], SPLIT))
        write = WriteShard(base, artifact.uri, columns, with_row=table == "interactions", num_shards=len(pieces))
        with self._make_beam_pipeline() as pipeline:
            _ = (
                pipeline
                | "Pieces" >> beam.Create(list(enumerate(pieces)), reshuffle=False)
                | "Spread" >> beam.Reshuffle()
                | "Write" >> beam.ParDo(write)
            )
        summary = _gather(artifact.uri, len(pieces))
        summary["files"] = [source.name for source in sources]
        with fileio.open(os.path.join(artifact.uri, SUMMARY_FILE), "w") as file:
            file.write(json.dumps(summary, indent=1))
        check_bad_rows(
            table, summary["rows"], summary["bad_rows"], exec_properties["max_bad_row_share"], summary["first_bad_rows"]
        )


class WriteShard(beam.DoFn):
    """Writes one piece as one shard, and what happened as `piece-NNNNN.json`.

    Rows never become Beam elements: the per-element cost of a runner is paid per piece. Shards are
    written under a temporary name and renamed, so a retried element replaces its shard.
    """

    def __init__(self, base: str, uri: str, columns: Sequence[Column], *, with_row: bool, num_shards: int):
        self._base, self._uri, self._columns = base, uri, tuple(columns)
        self._with_row, self._num_shards = with_row, num_shards

    def process(self, element: tuple[int, Piece]) -> Iterable[int]:
        """Writes a shard and yields its number of rows."""
        index, piece = element
        name = f"{write_split.DEFAULT_TF_RECORD_FILE_NAME}-{index:05d}-of-{self._num_shards:05d}.gz"
        final = os.path.join(self._uri, f"Split-{SPLIT}", name)
        report: dict[str, Any] = {"rows": 0, "bad_rows": 0, "reasons": {}, "first_bad_rows": [], "error": ""}
        try:
            report.update(self._write(piece, index, final))
        except InputError as error:
            # Runners lose the type of an exception on its way; the executor raises it from the report.
            report["error"] = str(error)
        with fileio.open(_report_path(self._uri, index), "w") as file:
            file.write(json.dumps(report))
        yield report["rows"]

    def _write(self, piece: Piece, index: int, path: str) -> dict[str, Any]:
        bad = BadRowWriter(os.path.join(self._uri, BAD_ROWS_FOLDER), index)

        def records() -> Iterator[pa.LargeBinaryArray]:
            for batch in read_piece(piece, self._columns, with_row=self._with_row, files=file_access(self._base)):
                bad.add(batch.bad_rows)
                yield encode_examples(batch.rows)

        rows = write_records(path, records(), self._uri, compression_level=COMPRESSION_LEVEL)
        bad.close()
        return {"rows": rows, "bad_rows": bad.count, "reasons": dict(bad.reasons), "first_bad_rows": bad.first}


class BadRowWriter:
    """Writes bad rows as JSON lines; the file exists only if there is one."""

    def __init__(self, folder: str, index: int):
        self._folder, self._index = folder, index
        self._file: Any = None
        self.count = 0
        self.reasons: Counter[str] = Counter()
        self.first: list[str] = []

    def add(self, rows: Sequence[BadRow]) -> None:
        """Appends rows."""
        if rows and self._file is None:
            fileio.makedirs(self._folder)
            self._file = fileio.open(os.path.join(self._folder, f"part-{self._index:05d}.jsonl"), "w")
        for row in rows:
            self._file.write(json.dumps(asdict(row)) + "\n")
            self.reasons[f"{row.column}: {row.reason}" if row.column else row.reason] += 1
        self.count += len(rows)
        self.first += [str(row) for row in rows[: _FIRST_BAD_ROWS - len(self.first)]]

    def close(self) -> None:
        """Finishes the file."""
        if self._file is not None:
            self._file.close()


def _report_path(uri: str, index: int) -> str:
    return os.path.join(uri, f"piece-{index:05d}.json")


def _gather(uri: str, num_pieces: int) -> dict[str, Any]:
    """Adds up the reports of the pieces and removes them."""
    reasons: Counter[str] = Counter()
    first: list[str] = []
    rows = bad_rows = 0
    for report in _reports(uri, num_pieces):
        if report["error"]:
            raise InputError(report["error"])
        rows, bad_rows = rows + report["rows"], bad_rows + report["bad_rows"]
        reasons.update(report["reasons"])
        first += report["first_bad_rows"][: _FIRST_BAD_ROWS - len(first)]
    for index in range(num_pieces):
        fileio.remove(_report_path(uri, index))
    return {
        "rows": rows,
        "bad_rows": bad_rows,
        "bad_rows_by_reason": dict(sorted(reasons.items())),
        "first_bad_rows": first,
    }


def _reports(uri: str, num_pieces: int) -> Iterator[dict[str, Any]]:
    for index in range(num_pieces):
        with fileio.open(_report_path(uri, index)) as file:
            yield json.loads(file.read())
