"""Quality of the pushed SavedModel, scored by a program that shares no code with Tandem.

    python benchmarks/quality.py leave-one-out --data MOVIELENS_1M --yardstick DIR --seeds 1 2 3
    python benchmarks/quality.py time-split --preset online_retail --data ONLINE_RETAIL --yardstick DIR
    python benchmarks/quality.py ablation --data MOVIELENS_1M --yardstick DIR --table losses

`--yardstick` is a folder with `split.py` (splits a log) and `score.py` (scores `user_id, item_id, rank`); their
protocols are described in benchmarks/README.md. Each row of a table is one `tandem run`, one `tandem batch` and one
`score.py`; the commands are printed. Everything is written below `--work`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

from components.baselines.algorithms import fit_ease, fit_item_knn

K = 100
DAY = 86_400
HALF_LIVES_DAYS = (3, 7, 30)
SHOWN = ("ndcg@10", "hr@10", "recall@100", "mrr", "coverage@10")
# Time between the last event of the history and the target, in seconds.
GAPS = {"same second": (0, 0), "up to a minute": (1, 60), "up to a day": (61, DAY), "over a day": (DAY + 1, None)}
ALS_REGULARIZATION = 1.0
# EASE's ridge and item-kNN's neighbours and shrinkage, each chosen on the validation part of the split.
BASELINE_SETTINGS = {"movielens_1m_time": (800.0, 200, 20.0), "online_retail": (400.0, 100, 0.0)}
GENRES = '{name="genres", kind="multi_valued", tower="candidate"}'
TITLE = '{name="title_words", column="title", kind="text", tower="candidate", vocabulary_size=4000}'
YEAR = '{name="year", kind="numeric", tower="candidate"}'
USER = (
    '{name="age", kind="numeric", tower="query"},{name="gender", kind="categorical", tower="query"},'
    '{name="occupation", kind="categorical", tower="query"}'
)
ASKED_AT = '{name="asked_at", column="timestamp", kind="timestamp", tower="context"}'
IDLE = '{name="idle", kind="elapsed", tower="context"}'
LEARNED = "model.positions=learned"
ABLATIONS: dict[str, dict[str, list[str]]] = {
    "losses": {
        "full softmax (preset)": [],
        "sampled softmax, 512 uniform": ["loss.kind=sampled_softmax"],
        "sampled softmax, 512 by frequency": ["loss.kind=sampled_softmax", "loss.negative_sampling=frequency"],
        "sampled softmax, 512 mixed": ["loss.kind=sampled_softmax", "loss.negative_sampling=mixed"],
        "sampled softmax, 512 mixed, the 64 hardest": [
            "loss.kind=sampled_softmax",
            "loss.negative_sampling=mixed",
            "loss.hard_negatives=64",
        ],
        "gBCE, 64 negatives a position": ["loss.kind=gbce", "loss.num_negatives=64"],
        "in-batch, corrected": ["loss.kind=in_batch"],
        "in-batch, not corrected": ["loss.kind=in_batch", "loss.logq_correction=false"],
    },
    "encoders": {
        "transformer, rotary positions (preset)": [],
        "transformer, learned positions": [LEARNED],
        "transformer, histories with vectors of their own": ["model.shared_items=false"],
        "transformer, gates": ["model.residual_gates=true"],
        "transformer, gates and SwiGLU (eSASRec's blocks)": [
            "model.residual_gates=true",
            "model.feed_forward_activation=swiglu",
        ],
        "hstu": [LEARNED, "model.history_encoder=hstu"],
        "gru, one layer": [LEARNED, "model.history_encoder=gru", "model.num_layers=1"],
        "mean": [LEARNED, "model.history_encoder=mean"],
        "wide": [LEARNED, "model.history_encoder=wide"],
    },
    "features": {
        "ids (preset)": [],
        "ids, genres": [f"features=[{GENRES}]"],
        "ids, genres, title words, year": [f"features=[{GENRES},{TITLE},{YEAR}]"],
        "ids, age, gender and occupation": [f"features=[{USER}]"],
        "ids, hour and weekday of the request": [f"features=[{ASKED_AT}]"],
        "ids, time since the last event": [f"features=[{IDLE}]"],
        "ids, time gaps inside the history": ["model.time_gaps=true"],
        "genres, title words, year, no ids": [f"features=[{GENRES},{TITLE},{YEAR}]", "model.use_item_ids=false"],
    },
    "start": {"co-occurrence (preset)": [], "random": ["training.item_initialization=random"]},
}


def main() -> int:
    """Parses the arguments and runs one of the three measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, function in (("leave-one-out", leave_one_out), ("time-split", time_split), ("ablation", ablation)):
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        command.add_argument("--data", type=Path, required=True, help="data set folder")
        command.add_argument("--yardstick", type=Path, required=True, help="folder with split.py and score.py")
        command.add_argument("--work", type=Path, default=Path("runs/quality"))
        command.add_argument("--set", nargs="*", default=[], help="overrides of the preset, key=value")
        if name != "time-split":
            command.add_argument("--preset", default="movielens_1m")
        else:
            command.add_argument("--preset", choices=sorted(BASELINE_SETTINGS), required=True)
            command.add_argument("--peers_python", help="Python with requirements-peers.txt: implicit ALS as well")
        if name == "leave-one-out":
            command.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
        if name == "ablation":
            command.add_argument("--table", choices=sorted(ABLATIONS), required=True)
            command.add_argument("--epochs", type=int, default=3, help="shortened training, alike for all rows")
            command.add_argument("--row", default="", help="only the row of this name")
    arguments = parser.parse_args()
    arguments.function(arguments)
    return 0


def leave_one_out(arguments: argparse.Namespace) -> None:
    """The preset with several seeds; mean, spread, and the mean by the gap to the last event."""
    split = make_split(arguments, "leave-one-out")
    rows, gaps = {}, {}
    for seed in arguments.seeds:
        overrides = [*arguments.set, f"training.seed={seed}"]
        answers, cost = run_and_answer(arguments, split, arguments.data, f"seed{seed}", overrides)
        rows[f"seed {seed}"] = {**score(arguments, split, answers), **cost}
        gaps[f"seed {seed}"] = ndcg_by_gap(split, answers)
    table = pd.DataFrame(rows).T
    table.loc["mean"], table.loc["spread"] = table.mean(), table.iloc[: len(rows)].std()
    print(table.round(4).to_string(), "\n", pd.DataFrame(gaps).assign(mean=lambda t: t.mean(axis=1)).round(4), sep="\n")


def time_split(arguments: argparse.Namespace) -> None:
    """The preset on the events before the cut alone, beside baselines fitted on the same events."""
    split = make_split(arguments, "temporal")
    history = pd.concat([pd.read_parquet(split / f"{part}.parquet") for part in ("train", "validation_period")])
    history = history.sort_values(["timestamp"], kind="stable")
    folder = arguments.work / f"{arguments.preset}-history"
    folder.mkdir(parents=True, exist_ok=True)
    history.to_parquet(folder / "interactions.parquet", index=False)
    for name in ("items.parquet", "users.parquet"):
        if (arguments.data / name).is_file():
            shutil.copy(arguments.data / name, folder / name)
    answers, cost = run_and_answer(arguments, split, folder, arguments.preset, arguments.set)
    rows = {"Tandem": {**score(arguments, split, answers), **cost}}
    for name, scores in baseline_scores(arguments, history, split).items():
        path = arguments.work / f"{arguments.preset}-{name}.parquet".replace(" ", "_")
        write_ranking(path, *scores)
        rows[name] = score(arguments, split, path)
    print(pd.DataFrame(rows).T.round(4).to_string())


def ablation(arguments: argparse.Namespace) -> None:
    """One row for each value of one choice, all with the same shortened training; validation is what choices go by."""
    split = make_split(arguments, "leave-one-out")
    rows = {}
    table = ABLATIONS[arguments.table]
    chosen = {arguments.row: table[arguments.row]} if arguments.row in table else {} if arguments.row else table
    if not chosen:
        raise SystemExit(
            f"--row {arguments.row!r}: table {arguments.table} has {', '.join(ABLATIONS[arguments.table])}"
        )
    for name, overrides in chosen.items():
        label = "".join(letter if letter.isalnum() else "_" for letter in name)
        shortened = [*arguments.set, f"training.epochs={arguments.epochs}", "training.max_train_seconds=0"]
        shortened += ["compression.variants=[]", "evaluation.min_ndcg_over_popularity=0", *overrides]  # weak rows too
        answers, cost = run_and_answer(arguments, split, arguments.data, f"{arguments.table}-{label}", shortened)
        rows[name] = {"validation": cost.pop("validation"), **score(arguments, split, answers), **cost}
        print(pd.DataFrame(rows).T.round(4).to_string(), flush=True)


def make_split(arguments: argparse.Namespace, protocol: str) -> Path:
    """Folder of the yardstick's split; made once."""
    folder = arguments.work / f"{arguments.data.resolve().name}-{protocol}"
    if not (folder / "split.json").is_file():
        run([sys.executable, str(arguments.yardstick / "split.py"), str(arguments.data), str(folder)]
            + ["--protocol", protocol])  # fmt: skip
    return folder


def run_and_answer(
    arguments: argparse.Namespace, split: Path, data: Path, name: str, overrides: list[str]
) -> tuple[Path, dict[str, float]]:
    """Runs the preset and asks the pushed model for every test user: the answers, and what the run was and cost.

    `validation` is ndcg@10 of the best epoch, measured while training.
    """
    output, requests = arguments.work / "runs" / name, arguments.work / f"{split.name}-requests.parquet"
    if not requests.is_file():
        test_requests(split, data).to_parquet(requests, index=False)
    settings = [part for override in overrides for part in ("--set", override)]
    tandem = [sys.executable, "-m", "pipeline.cli"]
    run([*tandem, "run", arguments.preset, "--data", str(data), "--output", str(output), *settings])
    report = json.loads((output / "report.json").read_text())
    answers = arguments.work / f"{name}.answers.parquet"
    model = output / "serving" / report["name"]
    run([*tandem, "batch", "--model", str(model), "--requests", str(requests), "--output", str(answers), "-k", str(K)])
    trainer = next(row for row in report["resources"] if row["node"] == "Trainer")
    epochs = [record["ndcg_at_10"] for record in report["training"]["history"]]
    cost = {
        "trainer_cpu_s": trainer["cpu_seconds"] or 0.0,
        "model_mb": report["model"]["saved_model_bytes"] / 1e6,
        "validation": max((ndcg for ndcg in epochs if ndcg is not None), default=np.nan),
    }
    return answers, cost


def test_requests(split: Path, data: Path) -> pd.DataFrame:
    """`user_id` and `history` of every user with a test target: all events before it, oldest first.

    What a model may read besides, and others ignore: the times of the history, the features of the user, the time of
    the request (that of the first target) and how long it is after the history's last event.
    """
    parts = ["train", "validation_period" if (split / "validation_period.parquet").is_file() else "validation"]
    events = pd.concat([pd.read_parquet(split / f"{part}.parquet") for part in parts])
    events = events.sort_values(["user_id", "timestamp"], kind="stable")
    asked_at = pd.read_parquet(split / "test.parquet").groupby("user_id", sort=True)["timestamp"].min()
    by_user = events[events["user_id"].isin(asked_at.index)].groupby("user_id", sort=True)
    requests = by_user.agg(history=("item_id", list), history_timestamps=("timestamp", list))
    requests["asked_at"] = asked_at.reindex(requests.index)
    requests["idle"] = requests["asked_at"] - by_user["timestamp"].max()
    if (data / "users.parquet").is_file():
        requests = requests.join(pd.read_parquet(data / "users.parquet").set_index("user_id"))
    return requests.reset_index()


def score(arguments: argparse.Namespace, split: Path, answers: Path) -> dict[str, float]:
    """What `score.py` says of the answers."""
    command = [sys.executable, str(arguments.yardstick / "score.py"), str(split), str(answers)]
    document = json.loads(run(command, capture=True))
    metrics = {**document, **document["all"]}
    return {name: metrics[name] for name in SHOWN if name in metrics}


def ndcg_by_gap(split: Path, answers: Path) -> dict[str, float]:
    """Mean ndcg@10 by the time between a user's last event and the target (one target per user)."""
    last = pd.read_parquet(split / "validation.parquet").groupby("user_id")["timestamp"].max()
    test = pd.read_parquet(split / "test.parquet").set_index("user_id")
    gap = test["timestamp"] - last.reindex(test.index)
    ranked = pd.read_parquet(answers)
    hits = ranked.merge(test["item_id"].reset_index(), on=["user_id", "item_id"]).set_index("user_id")["rank"]
    gain = (1 / np.log2(hits[hits <= 10] + 1)).reindex(test.index).fillna(0)
    found = {name: (gap >= low) & (gap <= (np.inf if high is None else high)) for name, (low, high) in GAPS.items()}
    return {f"{name} ({int(chosen.sum())} users)": float(gain[chosen].mean()) for name, chosen in found.items()}


def baseline_scores(
    arguments: argparse.Namespace, history: pd.DataFrame, split: Path
) -> dict[str, tuple[np.ndarray, pd.Index, pd.Index, np.ndarray]]:
    """Scores `(users, items)` of each baseline for the test users, with users, items and what they have seen."""
    l2, neighbours, shrink = BASELINE_SETTINGS[arguments.preset]
    items = pd.Index(pd.read_parquet(split / "catalogue.parquet")["item_id"].astype(str))
    users = pd.Index(history["user_id"].unique())
    rows, columns = users.get_indexer(history["user_id"]), items.get_indexer(history["item_id"])
    known = columns >= 0
    matrix = sparse.csr_matrix((np.ones(known.sum()), (rows[known], columns[known])), shape=(len(users), len(items)))
    matrix.data[:] = 1
    asked = pd.Index(pd.read_parquet(split / "test.parquet")["user_id"].unique())
    seen = matrix[users.get_indexer(asked)]
    age = (history["timestamp"].max() - history["timestamp"].to_numpy()[known]) / DAY
    popularity = np.asarray(matrix.sum(axis=0)).ravel()
    scores = {
        "popularity": np.tile(popularity, (len(asked), 1)),
        "item-kNN": fit_item_knn(matrix, neighbours=neighbours, shrink=shrink).scores(seen),
        "EASE": fit_ease(matrix, l2=l2).scores(seen),
    }
    if arguments.peers_python:
        factors = als_factors(arguments, matrix)
        scores["ALS"] = factors["users"][users.get_indexer(asked)] @ factors["items"].T
    for half_life in HALF_LIVES_DAYS:
        recent = np.bincount(columns[known], weights=0.5 ** (age / half_life), minlength=len(items))
        scores[f"popularity, half-life {half_life} d"] = np.tile(recent, (len(asked), 1))
    return {name: (values, asked, items, seen.toarray() > 0) for name, values in scores.items()}


def als_factors(arguments: argparse.Namespace, matrix: sparse.csr_matrix) -> dict[str, np.ndarray]:
    """`users` and `items` of implicit ALS, fitted in the peers' environment."""
    given, found = (arguments.work / f"{arguments.preset}-als-{part}.npz" for part in ("matrix", "factors"))
    sparse.save_npz(given, matrix)
    script = Path(__file__).with_name("als_baseline.py")
    run([arguments.peers_python, str(script), str(given), str(found), str(ALS_REGULARIZATION)])
    return dict(np.load(found))


def write_ranking(path: Path, scores: np.ndarray, users: pd.Index, items: pd.Index, seen: np.ndarray) -> None:
    """Writes the K best unseen items of each user."""
    masked = np.where(seen, -np.inf, scores)
    best = np.argsort(-masked, axis=1, kind="stable")[:, :K]
    ranking = {
        "user_id": np.repeat(users, K),
        "item_id": items[best.ravel()],
        "rank": np.tile(np.arange(1, K + 1), len(users)),
    }
    pd.DataFrame(ranking).to_parquet(path, index=False)


def run(command: list[str], capture: bool = False) -> str:
    """Runs a command, shown first; its standard output if `capture`."""
    print("$", " ".join(command), flush=True)
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE if capture else None).stdout or ""


if __name__ == "__main__":
    sys.exit(main())
