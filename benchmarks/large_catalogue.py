"""A whole SavedModel of a million items: float32 with exact search beside int8 with the partitioned index.

    python benchmarks/retrieval_embeddings.py model --model SERVING/VERSION --data DATA --output vectors.npz
    python benchmarks/large_catalogue.py vectors.npz --data DATA --items 1000000

Item vectors are grown from those of a trained model (`retrieval_embeddings.grow`), the histories of real users are
told in grown items: each event becomes one of the items that grew from its own. The encoder is the weighted mean of
the history. Both models are exported as in a run, served by `tandem serve` on one thread, and asked the same
requests over gRPC in turn, and once more in this process, where no transport takes time; recall is that of the answers
of users who did not choose the index.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

# Python puts a script's folder first on the path, where serving.py would stand in for the package `serving`.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from benchmarks.retrieval_embeddings import grow  # noqa: E402
from components.compressor.measure import (  # noqa: E402
    MeasureOptions,
    ServedVariant,
    answer,
    folder_bytes,
    gzip_bytes,
    latencies,
    queries_per_second,
    time_ratio,
)
from components.compressor.workload import Workload  # noqa: E402
from models.config import ModelConfig, RetrievalConfig, TwoTowerConfig  # noqa: E402
from models.export import Catalogue, ServedTowers, export_saved_model  # noqa: E402
from models.input_pipeline import ItemFeatures  # noqa: E402
from models.serving_graph.users import UserHistories  # noqa: E402
from models.two_tower import TwoTowerModel  # noqa: E402
from serving.server.saved_model import LoadedModel, SessionThreads  # noqa: E402

HISTORY = 20
TEST_USERS = 1000
VARIANTS = {"float32, exact": ("float32", "exact"), "int8, partitioned": ("int8", "partitioned")}


def main() -> int:
    """Exports both models once, serves them and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vectors", type=Path, help="of `retrieval_embeddings.py model`")
    parser.add_argument("--data", type=Path, required=True, help="data set folder the model was trained on")
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--recall_target", type=float, default=0.98)
    parser.add_argument("--requests", type=int, default=200, help="timed requests")
    parser.add_argument("--work", type=Path, default=Path("runs/large_catalogue"))
    options = parser.parse_args()
    options.work /= f"{options.vectors.stem}-{options.items}-{options.recall_target}"
    vectors = np.load(options.vectors)
    base = vectors["items"]
    rng = np.random.default_rng(0)
    is_unit = bool(np.allclose(np.linalg.norm(base, axis=1), 1, atol=1e-3))
    items, parents = grow(base, options.items, rng, unit=is_unit)
    histories = grown_histories(options.data, vectors["ids"], parents, rng)
    num_test = min(TEST_USERS, len(histories) // 5)
    folders = export(options, items, histories[num_test:])
    print("\n".join(measure(folders, histories[:num_test], options)))
    return 0


def grown_histories(data: Path, ids: np.ndarray, parents: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Rows (from 1) of the newest events of every user, each a grown item of the event's item; users shuffled."""
    table = pq.read_table(data / "interactions.parquet").to_pandas().sort_values("timestamp", kind="stable")
    known = {item: place for place, item in enumerate(ids.tolist())}
    order = np.argsort(parents, kind="stable")
    starts = np.searchsorted(parents[order], np.arange(len(ids) + 1))
    histories = []
    for _, own in table.groupby("user_id")["item_id"]:
        places = np.array([known[item] for item in own if item in known], np.int64)[-HISTORY:]
        places = places[starts[places + 1] > starts[places]]
        if len(places):
            histories.append(1 + order[rng.integers(starts[places], starts[places + 1])])
    return [histories[user] for user in rng.permutation(len(histories))]


def export(options: argparse.Namespace, items: np.ndarray, histories: list[np.ndarray]) -> dict[str, Path]:
    """Folders of the exported models, by name; those that are there already are kept."""
    count, dim = items.shape
    events = np.bincount(np.concatenate(histories), minlength=count + 1)
    live = np.arange(count + 1) > 0
    assets = options.work / "transform" / "transform_fn" / "assets"
    assets.mkdir(parents=True, exist_ok=True)
    (assets / "items").write_text("".join(f"{item_id(row)}\n" for row in range(1, count + 1)))
    users = UserHistories(
        [b"user-%d" % user for user in range(len(histories))],
        np.concatenate(histories),
        np.concatenate([[0], np.cumsum([len(history) for history in histories])]),
    )
    folders = {}
    for name, (storage, method) in VARIANTS.items():
        folders[name] = folder = options.work / name.replace(", ", "-")
        if folder.exists():
            continue
        config = TwoTowerConfig(
            model=ModelConfig(embedding_dim=dim, history_encoder="mean", max_history_length=HISTORY),
            retrieval=RetrievalConfig(method=method, recall_target=options.recall_target),
        )
        model = TwoTowerModel(config, count)
        model.set_item_features(ItemFeatures({}, live, events))
        model.candidate_tower.get_layer("item_id_embedding").set_weights([np.pad(items, [(1, 0), (0, 0)])])
        model.history_encoder.get_layer("output_projection").set_weights([np.eye(dim), np.zeros(dim)])
        begin = time.monotonic()
        aside = folder.with_suffix(".tmp")
        export_saved_model(
            str(aside / "1"),
            ServedTowers.of(model),
            Catalogue(live, events),
            users,
            transform_graph_dir=str(options.work / "transform"),
            storage=storage,
        )
        aside.rename(folder)
        print(f"{name}: exported in {time.monotonic() - begin:.0f} s", flush=True)
    return folders


def item_id(row: int) -> str:
    """The id of a row."""
    return f"item-{row}"


def measure(folders: dict[str, Path], histories: list[np.ndarray], options: argparse.Namespace) -> list[str]:
    """Markdown lines; ratios are against the first folder."""
    workload = Workload(
        histories=[[item_id(row).encode() for row in history] for history in histories],
        targets=np.zeros(0, np.int64),
        target_splits=np.zeros(len(histories) + 1, np.int64),
        features={},
        row_of={item_id(row).encode(): row for row in range(1, options.items + 1)},
        slices={},
    )
    settings = MeasureOptions(num_threads=1, latency_requests=options.requests)
    rows: dict[str, dict[str, Any]] = {}
    exact, first = np.zeros(0), next(iter(folders.values()))
    with ServedVariant(str(first), settings.num_threads) as reference:
        for name, folder in folders.items():
            with ServedVariant(str(folder), settings.num_threads) as served:
                resident = served.resident_bytes()
                found = answer(served, workload)
                exact = found if folder is first else exact
                times, beside = latencies(served, reference, workload, settings.latency_requests)
                rows[name] = {
                    "bytes": folder_bytes(folder),
                    "gzip_bytes": gzip_bytes(folder),
                    "resident_bytes": resident,
                    "load_seconds": served.load_seconds,
                    "p50_ms": float(np.median(times)) * 1e3,
                    "p99_ms": float(np.quantile(times, 0.99)) * 1e3,
                    "p50_ratio": float(np.median(beside) / np.median(times)),
                    "quick_ratio": 1 / time_ratio(times, beside),
                    "graph_ms": graph_ms(folder / "1", workload, settings.latency_requests),
                    "queries_per_second": queries_per_second(served, workload, 50),
                    "recall@10": recall(found[:, :10], exact[:, :10]),
                    "recall@100": recall(found, exact),
                }
                print(name, json.dumps(rows[name]), flush=True)
    lines = [
        "| model | MB | ÷ | MB gzipped | MB resident | load s | p50 ms | ÷ | p99 ms | graph alone, ms | ÷ "
        "| histories/s | recall@10 | recall@100 |",
        "| --- |" + " ---: |" * 13,
    ]
    base = next(iter(rows.values()))
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['bytes'] / 1e6:.1f} | {base['bytes'] / row['bytes']:.2f} | {row['gzip_bytes'] / 1e6:.1f} "
            f"| {row['resident_bytes'] / 1e6:.0f} | {row['load_seconds']:.1f} | {row['p50_ms']:.2f} "
            f"| {row['p50_ratio']:.1f} | {row['p99_ms']:.2f} | {row['graph_ms']:.2f} "
            f"| {base['graph_ms'] / row['graph_ms']:.1f} | {row['queries_per_second']:.0f} "
            f"| {row['recall@10']:.4f} | {row['recall@100']:.4f} |"
        )
    return lines


def graph_ms(saved_model: Path, workload: Workload, count: int) -> float:
    """Median time of a run of `recommend` for one history in this process, on one thread."""
    model = LoadedModel(saved_model, threads=SessionThreads(intra_op=1))
    signature = model.signatures["recommend"]
    fetches = [signature.outputs[name].name for name in ("item_ids", "scores")]
    times = []
    for request in np.resize(np.arange(len(workload)), count).tolist():
        inputs = workload.inputs([request], 10)
        feeds = {
            signature.inputs["history"].name: np.array(inputs["history"], object),
            signature.inputs["exclude"].name: np.empty((1, 0), object),
            signature.inputs["k"].name: np.array(10, np.int32),
        }
        begin = time.perf_counter()
        model.run(feeds, fetches)
        times.append(time.perf_counter() - begin)
    model.close()
    return float(np.median(times)) * 1e3


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    """Share of the exact answers `(requests, k)` that were found."""
    hits = (exact[:, :, None] == found[:, None, :]).any(axis=2)
    return float(hits[exact > 0].mean())


if __name__ == "__main__":
    sys.exit(main())
