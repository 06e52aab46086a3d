"""The goods of the generated marketplace: topics, titles, brands, prices, launch dates.

A *topic* is a kind of article inside a department ("Backpacks" in "Outdoor"). Titles and categories
name it, so a model that reads content can place an item that nobody has bought yet.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

YEAR_SECONDS = 365 * 86_400
YEAR_START = 1_735_689_600  # 2025-01-01 00:00 UTC
COLD_SHARE = 0.03
NEW_SHARE = 0.27
_ITEMS_PER_TOPIC = 40
_BRANDS_PER_DEPARTMENT = 6
_BRAND_STARTS = ("Nor", "Al", "Bel", "Cal", "Dor", "El", "Fen", "Gal", "Hal", "Is", "Kar", "Lum")
_BRAND_ENDS = ("vik", "dera", "mont", "tano", "wick", "sen", "loria", "ford", "nova", "quist", "bury", "lin")
_COLOURS = ("Black", "White", "Red", "Blue", "Green", "Grey", "Sand", "Plum", "Copper", "Navy")

# Department: (styles, topics as "plural category:noun of the title", typical price).
_DEPARTMENTS: dict[str, tuple[str, str, float]] = {
    "Outdoor": ("Alpine Trail Summit Ridge", "Backpacks:Backpack Tents:Tent Lanterns:Lantern Stoves:Stove", 70),
    "Kitchen": ("Cast Stoneware Chef Bistro", "Pans:Pan Kettles:Kettle Knives:Knife Bowls:Bowl", 35),
    "Books": (
        "Illustrated Collected Annotated Pocket",
        "Novels:Novel Atlases:Atlas Cookbooks:Cookbook Poems:Poems",
        16,
    ),
    "Music": ("Acoustic Studio Vintage Concert", "Guitars:Guitar Pianos:Piano Drums:Drum Violins:Violin", 240),
    "Garden": ("Cottage Terrace Orchard Meadow", "Planters:Planter Shears:Shears Hoses:Hose Seeds:Seeds", 22),
    "Fashion": ("Linen Tailored Casual Knitted", "Shirts:Shirt Dresses:Dress Jackets:Jacket Scarves:Scarf", 48),
    "Games": ("Strategy Family Cooperative Classic", "Puzzles:Puzzle Cards:Cards Dice:Dice Boards:Boardgame", 27),
    "Audio": ("Wireless Hi-Fi Portable Noiseless", "Headphones:Headphones Speakers:Speaker Radios:Radio Amps:Amp", 95),
    "Cycling": ("Gravel Aero Touring Commuter", "Saddles:Saddle Helmets:Helmet Pedals:Pedals Lights:Light", 55),
    "Office": ("Ergonomic Modular Executive Slim", "Desks:Desk Chairs:Chair Notebooks:Notebook Pens:Pen", 60),
    "Beauty": ("Botanical Velvet Mineral Silk", "Creams:Cream Perfumes:Perfume Soaps:Soap Serums:Serum", 28),
    "Toys": ("Wooden Plush Magnetic Musical", "Trains:Train Dolls:Doll Blocks:Blocks Robots:Robot", 24),
    "Pets": ("Cosy Grooming Playful Sturdy", "Leashes:Leash Beds:Petbed Feeders:Feeder Collars:Collar", 21),
    "Photo": ("Telephoto Compact Instant Panorama", "Cameras:Camera Tripods:Tripod Lenses:Lens Frames:Frame", 180),
    "Coffee": ("Espresso Arabica Barista Roasted", "Grinders:Grinder Beans:Beans Mugs:Mug Filters:Filter", 30),
    "Fitness": ("Resistance Training Balance Endurance", "Mats:Mat Dumbbells:Dumbbell Ropes:Rope Bands:Band", 33),
    "Lighting": ("Pendant Dimmable Tiffany Floor", "Lamps:Lamp Bulbs:Bulb Candles:Candle Sconces:Sconce", 44),
    "Crafts": ("Handspun Quilted Watercolour Carved", "Yarns:Yarn Brushes:Brush Fabrics:Fabric Easels:Easel", 19),
}


class Categorical:
    """Many discrete distributions, drawn from in one call.

    Row r occupies `(r, r + 1]` of one rising array, so a draw is a binary search for `r + uniform`.

    Args:
        rows: Row of every weight, ascending, `(num_weights,)`; a row without weights must not be drawn from.
        weights: Positive weights `(num_weights,)`.
        num_rows: Number of distributions.
        values: What position i stands for, `(num_weights,)`; positions themselves by default.
    """

    def __init__(self, rows: np.ndarray, weights: np.ndarray, num_rows: int, values: np.ndarray | None = None) -> None:
        counts = np.bincount(rows, minlength=num_rows)
        self.starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        total = np.concatenate([[0.0], np.cumsum(weights)])
        before, whole = total[self.starts[:-1]], np.diff(total[self.starts])
        self._rising = rows + (total[1:] - before[rows]) / whole[rows]
        last = self.starts[1:][counts > 0] - 1
        self._rising[last] = rows[last] + 1.0
        self._values = np.arange(len(rows)) if values is None else values

    def draw(self, rows: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """One value per row `(n,)` from as many numbers in [0, 1)."""
        return self._values[np.searchsorted(self._rising, rows + uniform, side="right")]


@dataclass(frozen=True)
class Catalogue:
    """The items, in id order.

    Attributes:
        topic: Topic of every item `(num_items,)`.
        popularity: Zipf weight inside the topic; 0 for cold items.
        launched: Seconds since 1970-01-01 UTC `(num_items,)`.
        cold: True for items launched near the end of the year: they only ever appear as the last
            event of a user, so no split trains on them.
        num_topics: Number of topics.
        table: The columns of `items.*`.
    """

    topic: np.ndarray
    popularity: np.ndarray
    launched: np.ndarray
    cold: np.ndarray
    num_topics: int
    table: pa.Table


def make_catalogue(num_items: int, rng: np.random.Generator) -> Catalogue:
    """Draws the items.

    Args:
        num_items: At least 10.
        rng: Source of all randomness.
    """
    num_topics = int(np.clip(num_items // _ITEMS_PER_TOPIC, 2, 4 * len(_DEPARTMENTS)))
    topic = rng.permutation(np.arange(num_items) % num_topics)
    cold = np.zeros(num_items, dtype=bool)
    cold[rng.choice(num_items, max(1, round(COLD_SHARE * num_items)), replace=False)] = True
    rank = _rank_in_topic(topic, rng)
    new = ~cold & (rng.random(num_items) < NEW_SHARE) & (rank > _first_warm_rank(topic, rank, cold, num_topics)[topic])
    start = np.where(cold, 0.975, np.where(new, 0.02, -3.0))
    stop = np.where(cold, 0.995, np.where(new, 0.90, -0.01))
    launched = YEAR_START + (rng.uniform(start, stop) * YEAR_SECONDS).astype(np.int64)
    popularity = np.where(cold, 0.0, (rank + 2.0) ** -1.5)
    table = _item_table(topic, launched, rng)
    return Catalogue(topic, popularity, launched, cold, num_topics, table)


def item_ids(num_items: int) -> np.ndarray:
    """`i00000` and so on; wider from 100,000 items on."""
    return _numbered("i", num_items)


def user_ids(num_users: int) -> np.ndarray:
    """`u00000` and so on; wider from 100,000 users on."""
    return _numbered("u", num_users)


def _numbered(prefix: str, count: int) -> np.ndarray:
    width = max(5, len(str(count - 1)))
    return np.array([f"{prefix}{i:0{width}d}" for i in range(count)], dtype=object)


def _rank_in_topic(topic: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Popularity rank from 0 of every item inside its topic, at random."""
    order = np.lexsort((rng.random(len(topic)), topic))
    starts = np.concatenate([[0], np.cumsum(np.bincount(topic))])
    rank = np.empty(len(topic), dtype=np.int64)
    rank[order] = np.arange(len(topic)) - starts[topic[order]]
    return rank


def _first_warm_rank(topic: np.ndarray, rank: np.ndarray, cold: np.ndarray, num_topics: int) -> np.ndarray:
    """Rank of each topic's most popular item that is not cold: it is on sale all year."""
    first = np.full(num_topics, len(topic))
    np.minimum.at(first, topic[~cold], rank[~cold])
    return first


def _item_table(topic: np.ndarray, launched: np.ndarray, rng: np.random.Generator) -> pa.Table:
    names = list(_DEPARTMENTS)
    brands = [a + b for b in _BRAND_ENDS for a in _BRAND_STARTS]
    department = topic % len(names)
    count = len(topic)
    kind = topic // len(names)
    style = rng.integers(4, size=count)
    colour = rng.integers(len(_COLOURS), size=count)
    brand = department * _BRANDS_PER_DEPARTMENT + rng.integers(_BRANDS_PER_DEPARTMENT, size=count)
    titles, categories, brand_names = [], [], []
    for d, k, s, c, b in zip(department, kind, style, colour, brand, strict=True):
        styles, kinds, _ = _DEPARTMENTS[names[d]]
        category, noun = kinds.split()[k].split(":")
        titles.append(f"{brands[b]} {styles.split()[s]} {noun} {_COLOURS[c]}")
        categories.append([names[d], category])
        brand_names.append(brands[b])
    typical = np.array([_DEPARTMENTS[name][2] for name in names])[department]
    price = np.round(typical * np.exp(rng.normal(0, 0.5, count)), 2)
    return pa.table(
        {
            "item_id": pa.array(item_ids(count), pa.string()),
            "title": pa.array(titles, pa.string()),
            "categories": pa.array(categories, pa.list_(pa.string())),
            "brand": pa.array(brand_names, pa.string()),
            "price": pa.array(price, pa.float64()),
            "launched": pa.array(launched, pa.int64()),
        }
    )


__all__ = ["YEAR_SECONDS", "YEAR_START", "Catalogue", "Categorical", "item_ids", "make_catalogue", "user_ids"]
