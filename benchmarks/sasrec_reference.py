"""SASRec with full cross-entropy in PyTorch: the peer of benchmarks/time_to_quality.py.

    python benchmarks/sasrec_reference.py SPLIT_DIR --seconds 720

Runs in an environment of its own (`pip install torch numpy pandas pyarrow`), on one thread. Pre-norm blocks, tied
embeddings, learnt positions, histories cut into windows so that every event is trained on, batches of windows of
similar length, softmax over the whole catalogue in chunks with the gradient formed in place, bfloat16 where the CPU
has it, cosine decay over a budget of CPU seconds. Sources: Kang and McAuley, ICDM 2018; full cross-entropy as in
Klenitskiy and Vasilev, RecSys 2023. Prints validation ndcg@10 over the whole catalogue beside the CPU seconds of
training, validations left out.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional

MAX_LENGTH, BATCH, CHUNK, WARMUP_STEPS = 200, 32, 512, 100


def dropped(inputs: torch.Tensor, rate: float, training: bool) -> torch.Tensor:
    """Dropout from random bytes (rates in steps of 1/256): half the time of torch's own on a CPU."""
    if not training:
        return inputs
    kept = round(256 * (1 - rate))
    return inputs * (torch.empty(inputs.shape, dtype=torch.uint8).random_() < kept) * (256 / kept)


class Block(nn.Module):
    """Causal self-attention and feed-forward, each after a layer norm and added to its input."""

    def __init__(self, dim: int, heads: int, multiplier: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(dim), nn.LayerNorm(dim)])
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.wide, self.narrow = nn.Linear(dim, multiplier * dim), nn.Linear(multiplier * dim, dim)
        self.dropout = dropout

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        batch, length, dim = inputs.shape
        parts = self.qkv(self.norms[0](inputs)).view(batch, length, 3, self.heads, dim // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        # Written out: on a CPU twice as fast, forwards and back, as the fused operation in bfloat16.
        hidden_future = torch.full((length, length), -torch.inf, dtype=query.dtype).triu(1)
        mixed = torch.softmax((query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2) + hidden_future, dim=-1) @ value
        mixed = self.out(mixed.transpose(1, 2).reshape(batch, length, dim))
        inputs = inputs + dropped(mixed, self.dropout, self.training)
        hidden = functional.gelu(self.wide(self.norms[1](inputs)))
        return inputs + dropped(self.narrow(hidden), self.dropout, self.training)


class SasRec(nn.Module):
    """History rows `(B, L)`, row 0 as padding last, to vectors `(B, L, D)`; places count from the newest event."""

    def __init__(self, items: int, dim: int = 128, heads: int = 4, multiplier: int = 2, dropout: float = 0.25) -> None:
        super().__init__()
        self.items = nn.Embedding(items + 1, dim, padding_idx=0)
        self.positions = nn.Embedding(MAX_LENGTH, dim)
        nn.init.normal_(self.items.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.blocks = nn.ModuleList([Block(dim, heads, multiplier, dropout) for _ in range(2)])
        self.norm, self.dropout = nn.LayerNorm(dim), dropout

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        places = ((rows > 0).sum(dim=1, keepdim=True) - 1 - torch.arange(rows.shape[1])).clamp(min=0)
        hidden = self.items(rows) * self.items.embedding_dim**0.5 + self.positions(places)
        hidden = dropped(hidden, self.dropout, self.training)
        for block in self.blocks:  # padding comes last, so no event reads it
            hidden = block(hidden)
        return self.norm(hidden)


class ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies over all items, a chunk of positions at a time, gradients formed on the way."""

    @staticmethod
    def forward(ctx, vectors, table, labels, dtype):  # noqa: ANN001, ANN205
        table_low = table.to(dtype)
        columns = table_low.T.contiguous()
        grad_vectors, grad_table, loss = torch.empty_like(vectors), torch.zeros_like(table), 0.0
        for start in range(0, len(vectors), CHUNK):
            part, wanted = vectors[start : start + CHUNK].to(dtype), labels[start : start + CHUNK]
            logits = (part @ columns).float()
            logits[:, 0] = -torch.inf
            probabilities = torch.softmax(logits, dim=1)
            places = torch.arange(len(wanted))
            loss -= float(probabilities[places, wanted].log().sum())
            probabilities[places, wanted] -= 1
            low = probabilities.to(dtype)
            grad_vectors[start : start + CHUNK] = (low @ table_low).float()
            grad_table += (low.T @ part).float()
        ctx.save_for_backward(grad_vectors, grad_table)
        return torch.tensor(loss)

    @staticmethod
    def backward(ctx, upstream):  # noqa: ANN001, ANN205
        grad_vectors, grad_table = ctx.saved_tensors
        return grad_vectors * upstream, grad_table * upstream, None, None


def windows(histories: list[np.ndarray]) -> list[np.ndarray]:
    """Pieces of at most MAX_LENGTH + 1 events in which every event but a history's first is a label once."""
    pieces = []
    for history in histories:
        end = len(history)
        while end > 1:
            start = max(end - MAX_LENGTH - 1, 0)
            pieces.append(history[start:end])
            end = start + 1
    return pieces


def epoch_batches(pieces: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """Batches of pieces of similar length, in random order."""
    order = rng.permutation(len(pieces))
    order = order[np.argsort([len(pieces[index]) + rng.integers(0, 8) for index in order], kind="stable")]
    chunks = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    return [chunks[index] for index in rng.permutation(len(chunks))]


def padded(pieces: list[np.ndarray]) -> torch.Tensor:
    """`(len(pieces), longest)`, padded at the end."""
    width = max(map(len, pieces))
    rows = np.zeros((len(pieces), width), dtype=np.int64)
    for row, piece in zip(rows, pieces, strict=True):
        row[: len(piece)] = piece
    return torch.from_numpy(rows)


@torch.no_grad()
def validation_ndcg(model: SasRec, histories: list[np.ndarray], targets: np.ndarray) -> float:
    """ndcg@10 over the whole catalogue, items of the history left out."""
    model.eval()
    total, order = 0.0, np.argsort([len(history) for history in histories])
    for start in range(0, len(order), 256):
        chosen = order[start : start + 256]
        rows = padded([histories[user][-MAX_LENGTH:] for user in chosen])
        vectors = model(rows)[torch.arange(len(rows)), (rows > 0).sum(dim=1) - 1]
        scores = vectors @ model.items.weight.T
        scores[:, 0] = -torch.inf
        for row, user in enumerate(chosen):
            scores[row, histories[user]] = -torch.inf
        wanted = torch.from_numpy(targets[chosen])
        ranks = (scores > scores.gather(1, wanted[:, None])).sum(dim=1)
        total += float((1 / torch.log2(ranks + 2.0))[ranks < 10].sum())
    model.train()
    return total / len(histories)


def main() -> None:
    """Trains and prints the curve as one JSON line for each validation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("split", type=Path, help="folder with train.parquet and validation.parquet")
    parser.add_argument("--seconds", type=float, default=720, help="CPU seconds of training")
    parser.add_argument("--stop-at", type=float, default=1.0, help="end when validation ndcg@10 reaches this")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    rng = np.random.default_rng(arguments.seed)
    train, validation = (pd.read_parquet(arguments.split / f"{part}.parquet") for part in ("train", "validation"))
    items = pd.Index(pd.read_parquet(arguments.split / "catalogue.parquet")["item_id"])
    train = train.assign(row=items.get_indexer(train["item_id"]) + 1).sort_values("timestamp", kind="stable")
    by_user = {user: group.to_numpy() for user, group in train.groupby("user_id")["row"]}
    validation = validation[validation["user_id"].isin(by_user)]
    histories = [by_user[user] for user in validation["user_id"]]
    targets = items.get_indexer(validation["item_id"]) + 1
    flags = Path("/proc/cpuinfo").read_text()
    dtype = torch.bfloat16 if "avx512_bf16" in flags or "amx_bf16" in flags else torch.float32
    model, pieces = SasRec(len(items)), windows(list(by_user.values()))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.98))
    spent, steps, epoch = 0.0, 0, 0
    while spent < arguments.seconds:
        for chosen in epoch_batches(pieces, rng):
            begin = time.process_time()
            rate = 0.5 * (1 + math.cos(math.pi * min(spent / arguments.seconds, 1.0)))
            optimizer.param_groups[0]["lr"] = 1e-3 * rate * min(1.0, (steps + 1) / WARMUP_STEPS)
            batch = padded([pieces[index] for index in chosen])
            rows, labels = batch[:, :-1], batch[:, 1:]
            kept = labels > 0
            with torch.autocast("cpu", dtype=dtype, enabled=dtype == torch.bfloat16):
                vectors = model(rows)
            loss = ChunkedCrossEntropy.apply(vectors[kept].float(), model.items.weight, labels[kept], dtype)
            optimizer.zero_grad()
            (loss / kept.sum()).backward()
            optimizer.step()
            steps += 1
            spent += time.process_time() - begin
            if spent >= arguments.seconds:
                break
        epoch += 1
        ndcg = validation_ndcg(model, histories, targets)
        print(json.dumps({"epoch": epoch, "cpu_seconds": round(spent, 1), "ndcg@10": round(ndcg, 4)}), flush=True)
        if ndcg >= arguments.stop_at:
            break


if __name__ == "__main__":
    main()
