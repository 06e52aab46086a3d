"""`tandem schema`: infers a schema from the data once, as a draft to curate beside the preset."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pyarrow as pa
from google.protobuf import text_format

from components.arrow_example_gen.columns import table_columns
from components.arrow_example_gen.encoding import as_lists
from components.arrow_example_gen.preflight import read_table
from components.errors import InputError
from components.schema_gen.inferred import infer, schema_path
from components.statistics_gen.summaries import TableSummary
from pipeline.config import RunConfig
from pipeline.schemas import tables_of

_HEADER = """# Schema of {table}, inferred by `tandem schema` from {rows:,} rows; edit it, it is yours now.
# The fields: https://www.tensorflow.org/tfx/data_validation/get_started
"""


def write_schemas(config: RunConfig, data: Path, folder: Path, *, force: bool = False) -> list[Path]:
    """Reads the data set and writes one schema per table.

    Args:
        config: The preset.
        data: Data set folder.
        folder: Where to write; made if it is not there.
        force: Replace files that are there.

    Returns:
        The files.

    Raises:
        InputError: The data cannot be read, or a file is there already.
    """
    targets = {table: schema_path(folder, table) for table in tables_of(config)}
    there = [str(path) for path in targets.values() if path.exists()]
    if there and not force:
        raise InputError(
            f"{', '.join(there)}: there already, and maybe curated; pass --force to replace, or another folder"
        )
    texts = {}
    for table, path in targets.items():
        columns = table_columns(table, config.data, config.features)
        summary, lock = TableSummary(), threading.Lock()

        def add(rows: pa.RecordBatch, summary: TableSummary = summary, lock: threading.Lock = lock) -> None:
            lists = pa.RecordBatch.from_arrays([as_lists(column) for column in rows.columns], rows.schema.names)
            with lock:
                summary.add(lists)

        read_table(data, table, config.data, config.features, add)
        schema = infer(table, columns, summary.to_proto())
        texts[path] = _HEADER.format(table=table, rows=summary.num_examples) + text_format.MessageToString(schema)
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    return list(texts)
