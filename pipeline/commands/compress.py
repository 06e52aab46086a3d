"""`tandem compress`: the Compressor's search on a finished model, outside a pipeline run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.artifacts import REFITTED_FOLDER, TRAINING_FOLDER, VARIANTS_FILE
from components.errors import InputError, MissingInputError
from pipeline.config import ConfigError, apply_override

SERVING_FOLDER, JUDGED_FOLDER = "Format-Serving", "Format-TFMA"
METADATA_FILE = "metadata.db"
QUERY_TOWER_FILE, ITEMS_FILE = "query_tower.tflite", "items.txt"


def compress_model(
    model: Path,
    data: Path | None = None,
    output: Path | None = None,
    *,
    variants: Sequence[str] = (),
    overrides: Sequence[str] = (),
    tflite: bool = False,
) -> tuple[dict[str, Any], Path]:
    """Measures variants of a trained model and writes the cheapest one inside the quality budget.

    Args:
        model: Run folder, or a folder with `Format-Serving/` and `training/` (what Trainer and Compressor write).
        data: Run folder whose histories fine-tune and judge the variants; `model` where it is one.
        output: Folder to write: `Format-Serving/`, `training/` and `variants.json`; `compressed/` in `data` if None.
        variants: Names of variants; empty = those of the run.
        overrides: `compression.KEY=VALUE` settings in place of those of the run that made the model, or else the data.
        tflite: Also write the query tower of the chosen weights for devices: `query_tower.tflite`, and `items.txt`,
            whose line n (from 1) is the id of row n.

    Returns:
        What `variants.json` holds, and the folder.

    Raises:
        InputError: For a folder or setting that does not fit. Nothing is written.
    """
    data = data or model
    runs = {folder: _outputs(folder) for folder in {model, data} if (folder / METADATA_FILE).is_file()}
    trained = runs[model]["Trainer", "model"] if model in runs else model
    if data not in runs:
        raise MissingInputError(
            f"--data {data}: no run folder (it holds no {METADATA_FILE}); give the --output of the run that prepared "
            "the data, or run `tandem run PRESET --data DIR` first"
        )
    for name in (SERVING_FOLDER, TRAINING_FOLDER):
        if not (trained / name).is_dir():
            raise MissingInputError(
                f"--model {model}: holds no {name}/; a pushed SavedModel alone cannot be compressed, give the run "
                "folder, or the folder of the Trainer's output"
            )
    output = output or data / "compressed"
    if output.exists():
        raise InputError(f"--output {output}: exists already; remove it, or name another folder")
    if not output.parent.is_dir() or not os.access(output.parent, os.W_OK):
        raise InputError(f"--output {output}: {output.parent} is not a writable folder; create it, or name another")
    settings = _settings(_run_settings(model if model in runs else data), variants, overrides)
    return _search(trained, runs[data], output, settings, tflite=tflite), output


def trainer_output(model: Path) -> Path:
    """The folder that holds a finished model: what the Trainer of a run wrote, or `model` itself."""
    return _outputs(model)["Trainer", "model"] if (model / METADATA_FILE).is_file() else model


def _run_settings(run: Path) -> dict[str, Any]:
    """`[compression]` of the newest run in a folder; empty where that had no Compressor."""
    from pipeline.report.run_artifacts import read_latest_run

    node = read_latest_run(run / METADATA_FILE).get("Compressor")
    return dict(json.loads(node.properties["two_tower"])["compression"]) if node else {}


def _settings(of_run: Mapping[str, Any], variants: Sequence[str], overrides: Sequence[str]) -> Any:
    """The `CompressionConfig` that the arguments ask for."""
    from pydantic import ValidationError

    from models.compression.errors import CompressionError
    from models.compression.variants import parse_variant
    from models.config import CompressionConfig

    document: dict[str, Any] = {}
    for override in overrides:
        apply_override(document, override)
    if unknown := set(document) - {"compression"}:
        raise ConfigError(f"--set {min(unknown)}: a finished model only takes keys of `compression`")
    settings = {**of_run, **document.get("compression", {})}
    if variants:
        settings["variants"] = tuple(variants)
    try:
        config = CompressionConfig.model_validate(settings)
        for name in config.variants:
            parse_variant(name)
    except ValidationError as error:
        problem = error.errors()[0]
        raise ConfigError(f"--set compression.{'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None
    except CompressionError as error:
        raise InputError(f"--variants: {error}") from None
    return config


def _outputs(run: Path) -> Mapping[tuple[str, str], Path]:
    """Folders of the newest run's artifacts that a search reads, by node and output."""
    from pipeline.report.run_artifacts import read_latest_run

    nodes = read_latest_run(run / METADATA_FILE)
    wanted = (
        ("Trainer", "model"),
        ("Transform", "transformed_examples"),
        ("Transform", "transform_graph"),
        ("SequenceGen", "examples"),
    )
    found = {}
    for node, output in wanted:
        uri = nodes[node].uri(output) if node in nodes else None
        if uri is None or not uri.is_dir():
            raise MissingInputError(f"{run}: its newest run left no {output} of {node}; run it to the end first")
        found[node, output] = uri
    return found


def _search(
    trained: Path, prepared: Mapping[tuple[str, str], Path], output: Path, compression: Any, *, tflite: bool
) -> dict[str, Any]:
    from components.compressor.compression import CompressionInputs, compress, variants_document
    from components.compressor.refitted import replace_by_refitted
    from models.config import TwoTowerConfig
    from models.two_tower import CONFIG_FILE
    from pipeline.code_version import code_version

    record = json.loads((trained / TRAINING_FOLDER / CONFIG_FILE).read_text(encoding="utf-8"))
    config = TwoTowerConfig.model_validate(record["config"]).model_copy(update={"compression": compression})
    version = code_version("components.compressor.component")
    inputs = CompressionInputs(
        serving_dir=str(trained / SERVING_FOLDER),
        training_dir=str(trained / TRAINING_FOLDER),
        transformed_uri=str(prepared["Transform", "transformed_examples"]),
        transform_graph_dir=str(prepared["Transform", "transform_graph"]),
        sequences_uri=str(prepared["SequenceGen", "examples"]),
        # Where the pipeline keeps its rows too: a search that ran before is not measured again.
        cache_dir=str(prepared["Transform", "transformed_examples"].parents[2] / "Compressor" / "rows"),
        code_version=version,
    )
    aside = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        rows = compress(
            config,
            inputs,
            output_serving_dir=str(aside / SERVING_FOLDER),
            output_training_dir=str(aside / TRAINING_FOLDER),
        )
        if (trained / REFITTED_FOLDER).is_dir():
            replace_by_refitted(
                config,
                next(row.name for row in rows if row.chosen),
                refitted_dir=str(trained / REFITTED_FOLDER),
                transformed_uri=inputs.transformed_uri,
                transform_graph_dir=inputs.transform_graph_dir,
                serving_dir=str(aside / SERVING_FOLDER),
                judged_dir=str(aside / JUDGED_FOLDER),
                training_dir=str(aside / TRAINING_FOLDER),
            )
        document = variants_document(config.compression, rows, version)
        if tflite:
            _write_query_tower(aside, inputs.transform_graph_dir)
        (aside / VARIANTS_FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        os.replace(aside, output)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return document


def _write_query_tower(folder: Path, transform_graph_dir: str) -> None:
    from models.compression.tflite import write_query_tower
    from models.export import item_vocabulary_file
    from models.two_tower import load

    write_query_tower(folder / QUERY_TOWER_FILE, load(folder / TRAINING_FOLDER))
    shutil.copyfile(item_vocabulary_file(transform_graph_dir), folder / ITEMS_FILE)
