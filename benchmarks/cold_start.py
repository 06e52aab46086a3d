"""Items and users that training never saw: `python benchmarks/cold_start.py [--data DIR --preset FILE]`.

Takes a share of the items and a share of the users out of a data set folder, runs the pipeline on the rest (the items
stay in the catalogue, with their content), and asks the pushed SavedModel through `tandem batch`:

* cold items: the user's history up to an event on an item that was taken out, which is the target;
* unseen users: the history of a user that was taken out, the last event is the target;
* seen users: the same question about users that were trained on (their last two events were not).

Without `--data` the marketplace of the preset `quickstart` is generated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

K = 100
MIN_EVENTS = 5
MAX_TARGETS = 4000


@dataclass(frozen=True)
class Requests:
    """Questions of one kind: histories with one target each."""

    histories: list[list[str]]
    targets: list[str]


def read(folder: Path, name: str) -> pd.DataFrame | None:
    """A table of the data set; None if there is none."""
    path = folder / f"{name}.parquet"
    return pd.read_parquet(path) if path.exists() else None


def take_out(ids: pd.Series, share: float, rng: np.random.Generator) -> set[str]:
    """A share of the ids that have enough events."""
    counts = ids.value_counts()
    known = np.sort(counts.index[counts >= MIN_EVENTS].to_numpy(dtype=str))
    return set(rng.choice(known, int(len(known) * share), replace=False).tolist())


def requests_of(
    events: pd.DataFrame, cold: set[str], unseen: set[str], rng: np.random.Generator
) -> dict[str, Requests]:
    """Questions by kind, at most `MAX_TARGETS` of each."""
    asked: dict[str, Requests] = {kind: Requests([], []) for kind in ("cold items", "unseen users", "seen users")}
    for user, items in events.groupby("user_id", sort=True)["item_id"]:
        ids = items.tolist()
        history: list[str] = []
        for item in ids:
            if item in cold and user not in unseen and history:
                asked["cold items"].histories.append(list(history))
                asked["cold items"].targets.append(item)
            if item not in cold:
                history.append(item)
        if len(history) >= MIN_EVENTS and history[-1] not in history[:-1]:
            kind = "unseen users" if user in unseen else "seen users"
            asked[kind].histories.append(history[:-1])
            asked[kind].targets.append(history[-1])
    for kind, questions in asked.items():
        chosen = rng.permutation(len(questions.targets))[:MAX_TARGETS]
        asked[kind] = Requests([questions.histories[i] for i in chosen], [questions.targets[i] for i in chosen])
    return asked


def tandem(*arguments: object) -> None:
    """Runs the command line; its output is shown."""
    subprocess.run([sys.executable, "-m", "pipeline.cli", *map(str, arguments)], check=True)


def ranks(model: Path, requests: Requests, users: pd.DataFrame, folder: Path) -> np.ndarray:
    """Rank of each target in the served answers, from 1; 0 beyond K."""
    table = pd.DataFrame({"user_id": [str(i) for i in range(len(requests.targets))], "history": requests.histories})
    table.to_parquet(folder / "requests.parquet")
    tandem(
        "batch",
        "--model",
        model,
        "--requests",
        folder / "requests.parquet",
        "--output",
        folder / "answers.parquet",
        "-k",
        K,
    )
    answers = pd.read_parquet(folder / "answers.parquet")
    found = answers[answers["item_id"].to_numpy() == np.array(requests.targets)[answers["user_id"].astype(int)]]
    result = np.zeros(len(requests.targets), int)
    result[found["user_id"].astype(int)] = found["rank"]
    return result


def row(name: str, ranked: np.ndarray, chance: float) -> str:
    """One line of the table, with standard errors over the targets."""
    hits = (ranked > 0).astype(float)
    gains = np.where((ranked > 0) & (ranked <= 10), 1 / np.log2(np.maximum(ranked, 1) + 1), 0)
    errors = [values.std() / np.sqrt(len(values)) for values in (hits, gains)]
    return (
        f"| {name} | {len(ranked):,} | {hits.mean():.4f} ± {errors[0]:.4f} | {hits.mean() / chance:.1f} | "
        f"{gains.mean():.4f} ± {errors[1]:.4f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="data set folder with Parquet files; generated if left out")
    parser.add_argument("--preset", default="quickstart")
    parser.add_argument("--output", type=Path, default=Path("runs/cold_start"))
    parser.add_argument("--items", type=float, default=0.05, help="share of the items taken out")
    parser.add_argument("--users", type=float, default=0.2, help="share of the users taken out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], help="setting on top of the preset")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.data is None:
        options.data = options.output / "marketplace"
        tandem("data", "generate", options.data)
    rng = np.random.default_rng(options.seed)
    events = read(options.data, "interactions").sort_values(["user_id", "timestamp"], kind="stable")
    events = events.astype({"user_id": str, "item_id": str}).drop_duplicates(["user_id", "item_id"])
    cold, unseen = take_out(events["item_id"], options.items, rng), take_out(events["user_id"], options.users, rng)
    items = read(options.data, "items").astype({"item_id": str})
    kept = events[~events["item_id"].isin(cold) & ~events["user_id"].isin(unseen)]

    data = options.output / "data"
    data.mkdir(exist_ok=True)
    kept.to_parquet(data / "interactions.parquet")
    items.to_parquet(data / "items.parquet")
    users = read(options.data, "users")
    if users is not None:
        users.to_parquet(data / "users.parquet")
    run = options.output / "run"
    settings = [text for setting in options.set for text in ("--set", setting)]
    tandem("run", options.preset, "--data", data, "--output", run, *settings)
    report = json.loads((run / "report.json").read_text())

    model = Path(report["model"]["path"])
    chance = K / report["metrics"]["candidates"]
    print(f"\n{len(cold)} of {len(items)} items and {len(unseen)} users taken out; seed {options.seed}")
    print("| asked about | targets | recall@100 | x random | ndcg@10 |\n| --- | ---: | ---: | ---: | ---: |")
    for name, requests in requests_of(events, cold, unseen, rng).items():
        print(row(name, ranks(model, requests, users, options.output), chance), flush=True)


if __name__ == "__main__":
    main()
