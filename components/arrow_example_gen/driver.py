"""TFX driver: which files are read now, and their fingerprint, which is the cache key of the ingest."""

from __future__ import annotations

import json
from typing import Any

from tfx.components.example_gen import driver, utils

from components.arrow_example_gen.remote_files import file_access
from components.arrow_example_gen.sources import find_files, fingerprint, to_records

INPUT_FILES = "input_files"


class Driver(driver.FileBasedDriver):
    """Resolves the spans of a rolling window; TFX's own driver takes one span at a time.

    The fingerprint is a hash of the contents (TFX takes sizes and modification times): a data set that is
    generated or copied again gives a cache hit, a late or corrected span does not.
    """

    def resolve_exec_properties(
        self, exec_properties: dict[str, Any], pipeline_info: Any, component_info: Any
    ) -> dict[str, Any]:
        """Adds the files, the newest span as days since 1970 (0 without spans) and the fingerprint."""
        del pipeline_info, component_info
        base = exec_properties["input_base"]
        files = file_access(base)
        sources = find_files(
            base,
            exec_properties["table"],
            window=exec_properties["window"],
            exclude_spans=json.loads(exec_properties["exclude_spans"]),
            files=files,
        )
        newest = max(source.span for source in sources)
        span = utils.date_to_span_number(int(newest[:4]), int(newest[4:6]), int(newest[6:])) if newest else 0
        exec_properties[INPUT_FILES] = json.dumps(to_records(sources))
        exec_properties[utils.SPAN_PROPERTY_NAME] = span
        exec_properties[utils.VERSION_PROPERTY_NAME] = None
        exec_properties[utils.FINGERPRINT_PROPERTY_NAME] = fingerprint(sources, files)
        return exec_properties
