"""Ingest: CSV, Parquet and TFRecord files to tf.Examples, in Arrow record batches.

`columns`, `sources`, `csv_format`, `conversion`, `reading` and `preflight` need pyarrow only; import
`component` for the TFX node.
"""

from components.arrow_example_gen.columns import ROW_COLUMN, Column, columns_from_json, columns_to_json, table_columns

__all__ = ["ROW_COLUMN", "Column", "columns_from_json", "columns_to_json", "table_columns"]
