"""TFX executor: TFX's ExampleValidator, made to stop the run, with the checks of this domain added."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from tfx import types
from tfx.components.example_validator import executor, labels
from tfx.components.statistics_gen import stats_artifact_utils
from tfx.dsl.io import fileio
from tfx.proto.orchestration import execution_result_pb2
from tfx.types import artifact_utils, standard_component_specs
from tfx.utils import writer_utils

from components.arrow_example_gen.columns import Column, columns_from_json
from components.arrow_example_gen.example_files import read_examples
from components.artifacts import CHECKS_FILE
from components.config import ColumnsConfig, ValidationConfig
from components.errors import DataAnomalyError
from components.example_validator.anomalies import describe, drop_undeclared
from components.example_validator.checks import Check, check_interactions, check_items, check_users
from components.example_validator.comparisons import check_rows, compare, without_comparators
from components.example_validator.comparisons import failed as failed_comparisons
from components.example_validator.data_validation import validate_statistics
from components.example_validator.distributions import Comparison


class Executor(executor.Executor):
    """Validates one table; a broken rule stops the run.

    The anomalies artifact holds TFX's `SchemaDiff.pb` and `checks.json`: every check with value, threshold,
    verdict and message, and every column's distance to the last run with the two distributions.
    """

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> execution_result_pb2.ExecutorOutput:
        """Runs the checks.

        Raises:
            DataAnomalyError: The table breaks its schema or a check; the message lists all of them.
        """
        self._table = exec_properties["table"]
        self._previous = input_dict.get("previous_statistics") or []
        self._config = ValidationConfig.model_validate_json(exec_properties["validation"])
        self._checks: list[Check] = []
        self._drift: list[Comparison] = []
        output = super().Do(input_dict, output_dict, exec_properties)
        examples = artifact_utils.get_single_instance(input_dict["examples"])
        if self._schema_holds:
            self._checks += _domain_checks(self._table, examples, exec_properties, self._config)
        record = {
            "table": self._table,
            "checks": [_finite(check.to_record()) for check in self._checks],
            "drift": [comparison.to_record(self._table) for comparison in self._drift],
        }
        uri = artifact_utils.get_single_uri(output_dict["anomalies"])
        with fileio.open(os.path.join(uri, CHECKS_FILE), "w") as file:
            file.write(json.dumps(record, indent=1))
        failed = [check.message for check in (*self._checks, *failed_comparisons(self._drift)) if not check.passed]
        if failed:
            raise DataAnomalyError("\n".join(failed), record=record)
        return output

    def _Validate(self, inputs: dict[str, Any], outputs: dict[str, Any]) -> Any:
        """Compares statistics with the schema, and with the previous run's if there are any."""
        current, previous = inputs[standard_component_specs.STATISTICS_KEY], None
        if self._previous:
            previous = stats_artifact_utils.load_statistics(self._previous[0], "all").proto()
        anomalies = validate_statistics(
            statistics=current,
            schema=inputs[standard_component_specs.SCHEMA_KEY],
            previous_statistics=previous,
        )
        drop_undeclared(anomalies)
        schema_checks = describe(without_comparators(anomalies), self._table)
        self._schema_holds = all(check.passed for check in schema_checks)
        self._checks += schema_checks
        if previous is not None:
            self._drift += compare(
                anomalies,
                previous,
                current,
                table=self._table,
                kind="drift",
                reference_name="the last run",
                config=self._config,
            )
            before, after = (int(statistics.datasets[0].num_examples) for statistics in (previous, current))
            self._checks.append(check_rows(before, after, self._table, self._config))
        path = os.path.join(outputs[labels.SCHEMA_DIFF_PATH], executor.DEFAULT_FILE_NAME)
        writer_utils.write_anomalies(path, anomalies)
        return anomalies


def _domain_checks(
    table: str, examples: types.Artifact, exec_properties: dict[str, Any], config: ValidationConfig
) -> list[Check]:
    names = ColumnsConfig.model_validate_json(exec_properties["column_names"])
    columns = columns_from_json(exec_properties["columns"])
    if table == "interactions":
        wanted = [c for c in columns if c.name in (names.user_id, names.item_id, names.timestamp)]
        return check_interactions(_batches(examples, wanted), names, config, _num_rows(examples))
    if table == "items":
        features = [c.name for c in columns if c.name != names.item_id and not c.optional]
        return check_items(_batches(examples, columns), names, features, config)
    return check_users(_batches(examples, [c for c in columns if c.name == names.user_id]), names)


def _batches(examples: types.Artifact, columns: Any) -> Iterator[pa.RecordBatch]:
    folder = artifact_utils.get_split_uri([examples], "all")
    paths = sorted(os.path.join(folder, name) for name in fileio.listdir(folder))
    kinds: dict[str, str] = {column.name: column.kind for column in columns if isinstance(column, Column)}
    return read_examples(paths, kinds)


def _num_rows(examples: types.Artifact) -> int:
    """Rows of the table, 0 if the ingest left no summary."""
    path = os.path.join(examples.uri, "ingest.json")
    if not fileio.exists(path):
        return 0
    with fileio.open(path) as file:
        return int(json.loads(file.read())["rows"])


def _finite(record: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: no threshold is null."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
