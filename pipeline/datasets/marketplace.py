"""The people of the generated marketplace and what they do, step by step for many users at once.

A user holds four topics at a time and now and then trades one for another (drift); which topics are in
demand depends on the season and on the user's country and age. The next item is, in this order of choice,

* a repeat of a recent one (`REPEAT`),
* one of the four usual successors of the last item or of the one before (`FOLLOW`): the part that
  only a model reading the order can predict,
* an item of a topic held, by popularity.

Items seen before are avoided (but for the deliberate repeats), items not yet launched never appear.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.datasets.catalogue import YEAR_SECONDS, YEAR_START, Catalogue, Categorical, user_ids

MIN_USER_EVENTS = 5
FOLLOW = 0.34
REPEAT = 0.05
_LAST_ITEM = 0.8  # else the one before it
_SUCCESSOR_WEIGHTS = np.array([0.4, 0.27, 0.19, 0.14])
_RELATED_TOPIC = 0.2
_DRIFT = 0.06
_SWITCH_TOPIC = 0.25
_COLD_LAST_EVENT = 0.5
_HELD_TOPICS = 4
_COUNTRIES = {"DE": 24, "FR": 17, "GB": 16, "IT": 12, "ES": 10, "PL": 8, "NL": 6, "SE": 4, "PT": 2, "FI": 1}
_AGE_GROUPS = {"18-24": 18, "25-34": 27, "35-44": 22, "45-54": 16, "55-64": 11, "65+": 6}
_MONTHS = 12
_SEEN_BITS = 4096  # items are told apart by their low bits: exact up to 4096 items, then nearly so
_MAX_CHUNK_USERS = 16_384
_CHUNK_EVENTS = 1_000_000


@dataclass(frozen=True)
class Marketplace:
    """Everything that is drawn before the first event.

    Attributes:
        catalogue: The items.
        successors: Usual next items `(num_items, 4)`, the likeliest first.
        counts: Events of every user `(num_users,)`.
        group: Country and age group of every user as one number.
        users: The columns of `users.*`.
        shelf: Items of a topic by popularity.
        evergreens: The same, without items launched within the year.
        demand: Topics by month and user group.
    """

    catalogue: Catalogue
    successors: np.ndarray
    counts: np.ndarray
    group: np.ndarray
    users: pa.Table
    shelf: Categorical
    evergreens: Categorical
    demand: Categorical


def make_marketplace(catalogue: Catalogue, num_users: int, num_events: int, rng: np.random.Generator) -> Marketplace:
    """Draws users, demand and successors.

    Args:
        catalogue: The items.
        num_users: At least 1.
        num_events: At least `MIN_USER_EVENTS` a user.
        rng: Source of all randomness.
    """
    shelf = _shelf(catalogue, ~catalogue.cold, catalogue.popularity)
    country = rng.choice(len(_COUNTRIES), num_users, p=_shares(_COUNTRIES))
    age = rng.choice(len(_AGE_GROUPS), num_users, p=_shares(_AGE_GROUPS))
    users = pa.table(
        {
            "user_id": pa.array(user_ids(num_users), pa.string()),
            "country": pa.array(np.array(list(_COUNTRIES), dtype=object)[country], pa.string()),
            "age_group": pa.array(np.array(list(_AGE_GROUPS), dtype=object)[age], pa.string()),
        }
    )
    return Marketplace(
        catalogue=catalogue,
        successors=_successors(catalogue, rng),
        counts=_event_counts(num_users, num_events, rng),
        group=country * len(_AGE_GROUPS) + age,
        users=users,
        shelf=shelf,
        evergreens=_shelf(catalogue, catalogue.launched < YEAR_START, catalogue.popularity),
        demand=_demand(catalogue.num_topics, rng),
    )


def simulate(market: Marketplace, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields events in chunks of users: user `(n,)` int32, item `(n,)` int32, timestamp `(n,)` int64.

    Inside a chunk a user's events stand together, oldest first. Memory depends on the chunk, not on
    the number of users; chunk c draws from a stream of its own.
    """
    num_users = len(market.counts)
    mean = market.counts.sum() / num_users
    size = int(np.clip(_CHUNK_EVENTS // mean, 1, _MAX_CHUNK_USERS))
    for start in range(0, num_users, size):
        rng = np.random.default_rng([seed, 1, start])
        # Most active users first: those still active at a step are then a prefix.
        users = start + np.argsort(-market.counts[start : start + size], kind="stable")
        yield _simulate_chunk(market, users, rng)


def _shares(weights: dict[str, int]) -> np.ndarray:
    values = np.array(list(weights.values()), dtype=float)
    return values / values.sum()


def _shelf(catalogue: Catalogue, mask: np.ndarray, weights: np.ndarray) -> Categorical:
    order = np.argsort(catalogue.topic, kind="stable")
    order = order[mask[order]]
    return Categorical(catalogue.topic[order], weights[order], catalogue.num_topics, order)


def _event_counts(num_users: int, num_events: int, rng: np.random.Generator) -> np.ndarray:
    """Long-tailed counts that add up to `num_events`."""
    weights = np.minimum(rng.lognormal(0.0, 0.8, num_users), 12.0)
    shared = num_events - MIN_USER_EVENTS * num_users
    edges = np.rint(np.cumsum(weights) / weights.sum() * shared).astype(np.int64)
    return MIN_USER_EVENTS + np.diff(edges, prepend=0)


def _demand(num_topics: int, rng: np.random.Generator) -> Categorical:
    """Topic weights by month, country and age: a season, a taste of the country, one of the age."""
    base = (np.arange(num_topics) + 3.0) ** -0.8
    season = 0.6 * np.sin(2 * np.pi * (np.arange(_MONTHS)[:, None] / _MONTHS + rng.random(num_topics)))
    groups = rng.normal(0, 0.4, (len(_COUNTRIES), 1, num_topics)) + rng.normal(0, 0.7, (len(_AGE_GROUPS), num_topics))
    weights = base * np.exp(season[:, None] + groups.reshape(1, -1, num_topics))  # (months, groups, topics)
    num_rows = weights.shape[0] * weights.shape[1]
    values = np.tile(np.arange(num_topics), num_rows)
    return Categorical(np.repeat(np.arange(num_rows), num_topics), weights.ravel(), num_rows, values)


def _successors(catalogue: Catalogue, rng: np.random.Generator) -> np.ndarray:
    """Mostly of the same topic, else of one related topic; never the item itself where the shelf allows."""
    count = len(catalogue.topic)
    flat = _shelf(catalogue, ~catalogue.cold, np.sqrt(catalogue.popularity))
    related = rng.permutation(catalogue.num_topics)
    shape = (count, len(_SUCCESSOR_WEIGHTS))
    own = np.broadcast_to(catalogue.topic[:, None], shape)
    topic = np.where(rng.random(shape) < _RELATED_TOPIC, related[own], own).ravel()
    drawn = flat.draw(topic, rng.random(topic.size))
    for _ in range(4):
        own_item = np.flatnonzero(drawn == np.repeat(np.arange(count), shape[1]))
        drawn[own_item] = flat.draw(topic[own_item], rng.random(own_item.size))
    return drawn.reshape(shape)


def _event_times(counts: np.ndarray, starts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rising times per user: a membership within the year, visits of some minutes each."""
    users, total = len(counts), int(counts.sum())
    owner = np.repeat(np.arange(users), counts)
    begin = rng.uniform(0, 0.6, users)
    end = 1 - np.minimum(rng.exponential(0.12, users), 0.35)
    visit = rng.random(total) < 0.3
    long_gaps = _running_sums(np.where(visit, rng.exponential(1, total), 0.0), owner, starts)
    short_gaps = _running_sums(rng.uniform(20, 300, total), owner, starts)
    last = starts + counts - 1
    span = (end - begin) * YEAR_SECONDS
    short_scale = np.minimum(1.0, 0.5 * span / short_gaps[last])
    long_scale = (span - short_scale * short_gaps[last]) / np.maximum(long_gaps[last], 1e-9)
    offset = begin[owner] * YEAR_SECONDS + short_gaps * short_scale[owner] + long_gaps * long_scale[owner]
    return YEAR_START + np.minimum(offset, YEAR_SECONDS - 1).astype(np.int64)


def _running_sums(values: np.ndarray, owner: np.ndarray, starts: np.ndarray) -> np.ndarray:
    total = np.cumsum(values)
    return total - (total[starts] - values[starts])[owner]


def _simulate_chunk(
    market: Marketplace, users: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    counts, group = market.counts[users], market.group[users]
    starts = np.cumsum(counts) - counts
    times = _event_times(counts, starts, rng)
    month = (times - YEAR_START) * _MONTHS // YEAR_SECONDS
    num_groups = len(_COUNTRIES) * len(_AGE_GROUPS)
    items = np.empty(len(times), dtype=np.int64)
    seen = np.zeros((len(users), _SEEN_BITS), dtype=bool)
    row = np.arange(len(users))
    first_month = month[starts] * num_groups + group
    held = np.stack([market.demand.draw(first_month, rng.random(len(users))) for _ in range(_HELD_TOPICS)], axis=1)
    slot = np.zeros(len(users), dtype=np.int64)
    active = len(users)
    for step in range(int(counts[0])):
        while counts[active - 1] <= step:
            active -= 1
        now, at = row[:active], starts[:active] + step
        drifting = now[rng.random(active) < _DRIFT]
        demand_row = month[at[drifting]] * num_groups + group[drifting]
        slots = rng.integers(_HELD_TOPICS, size=drifting.size)
        held[drifting, slots] = market.demand.draw(demand_row, rng.random(drifting.size))
        switching = now[rng.random(active) < _SWITCH_TOPIC]
        slot[switching] = rng.integers(_HELD_TOPICS, size=switching.size)
        topic = held[now, slot[:active]]
        chosen = _choose(market, topic, items, at, step, times[at], seen, rng)
        items[at] = chosen
        seen[now, chosen % _SEEN_BITS] = True
    _place_cold_items(market.catalogue, items, times, starts + counts - 1, rng)
    return np.repeat(users, counts).astype(np.int32), items.astype(np.int32), times


def _choose(
    market: Marketplace,
    topic: np.ndarray,
    items: np.ndarray,
    at: np.ndarray,
    step: int,
    now: np.ndarray,
    seen: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Next item of the active users; `items[at - 1]` is the last one of each."""
    launched = market.catalogue.launched
    count = len(topic)

    def refused(rows: np.ndarray) -> np.ndarray:
        candidate = chosen[rows]
        return rows[seen[rows, candidate % _SEEN_BITS] | (launched[candidate] > now[rows])]

    chosen = market.shelf.draw(topic, rng.random(count))
    everyone = np.arange(count)
    if step:
        follow = everyone[rng.random(count) < FOLLOW]
        back = 1 + ((rng.random(follow.size) >= _LAST_ITEM) & (step > 1))
        previous = items[at[follow] - back]
        order = np.searchsorted(np.cumsum(_SUCCESSOR_WEIGHTS)[:-1], rng.random(follow.size), side="right")
        chosen[follow] = market.successors[previous, order]
        again = np.isin(follow, refused(follow))
        chosen[follow[again]] = market.successors[previous[again], (order[again] + 1) % len(_SUCCESSOR_WEIGHTS)]
    rows = refused(everyone)
    for _ in range(3):
        chosen[rows] = market.shelf.draw(topic[rows], rng.random(rows.size))
        rows = refused(rows)
    unborn = rows[launched[chosen[rows]] > now[rows]]
    chosen[unborn] = market.evergreens.draw(topic[unborn], rng.random(unborn.size))
    if step:
        repeating = everyone[rng.random(count) < REPEAT]
        back = 1 + (rng.random(repeating.size) * min(step, 10)).astype(np.int64)
        chosen[repeating] = items[at[repeating] - back]
    return chosen


def _place_cold_items(
    catalogue: Catalogue, items: np.ndarray, times: np.ndarray, last: np.ndarray, rng: np.random.Generator
) -> None:
    """Gives some users a just launched item of the topic they are at as their last event."""
    cold = np.flatnonzero(catalogue.cold)
    wanted = rng.random(len(last)) < _COLD_LAST_EVENT
    pick = cold[rng.integers(len(cold), size=len(last))]
    # The cold item of the user's topic, where there is one; else whatever was drawn.
    of_topic = np.full(catalogue.num_topics, -1)
    of_topic[catalogue.topic[cold]] = cold
    same = of_topic[catalogue.topic[items[last]]]
    pick = np.where(same >= 0, same, pick)
    wanted &= catalogue.launched[pick] <= times[last]
    items[last[wanted]] = pick[wanted]


__all__ = ["MIN_USER_EVENTS", "Marketplace", "make_marketplace", "simulate"]
