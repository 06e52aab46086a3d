"""Rebuilds a tower with some of its layers replaced, and moves weights between the two.

`keras.models.clone_model` keeps the graph of a functional tower and swaps layers; the weights follow by
layer name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from models.keras import keras
from models.two_tower import TwoTowerModel

Replace = Callable[[Any], Any]


def replace_layers(tower: keras.Model, replace: Replace) -> tuple[keras.Model, dict[str, Any]]:
    """A copy of `tower` in which `replace(layer)` stands for each layer it does not answer with None.

    Args:
        tower: Functional model.
        replace: Receives a fresh, unbuilt copy of each layer; returns its replacement, or None to keep it.

    Returns:
        The copy, and its replaced layers by the name of the original. Kept layers have the original's
        weights; filling the replaced ones is the caller's part.
    """
    replaced: dict[str, Any] = {}

    def clone(layer: Any) -> Any:
        fresh = layer.__class__.from_config(layer.get_config())
        other = replace(fresh)
        if other is None:
            return fresh
        replaced[layer.name] = other
        return other

    copy = keras.models.clone_model(tower, clone_function=clone)
    for layer in tower.layers:
        if layer.name not in replaced and layer.weights:
            copy.get_layer(layer.name).set_weights(layer.get_weights())
    return copy, replaced


def plain_copy(model: TwoTowerModel) -> TwoTowerModel:
    """An independent model with the same weights and catalogue."""
    copy = TwoTowerModel(model.config, model.num_items, model.vocabulary_sizes)
    copy.set_item_features(model.item_features)
    copy.set_weights(model.get_weights())
    return copy
