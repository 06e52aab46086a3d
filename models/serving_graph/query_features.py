"""Features of user and request: raw serving inputs through Transform's own graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from models.config import FeatureSpec
from models.features import feature_column
from models.keras import tf
from models.serving_graph.errors import ExportError


class QueryFeatures(tf.Module):
    """Turns raw features of the user and the request into the encoder's inputs with the graph that Transform wrote.

    Serving inputs carry the feature's name and the dtype of the raw column, shape `(B,)`, or `(B, n)`
    for `multi_valued`. "", NaN and the smallest int64 stand for a missing value.

    Args:
        specs: Features of users and requests, in the order of the preset.
        transform_graph_dir: Output of Transform; read only if there are features.
    """

    def __init__(self, specs: Sequence[FeatureSpec], transform_graph_dir: str) -> None:
        super().__init__()
        self._specs = tuple(specs)
        self._dtypes: dict[str, tf.DType] = {}
        if not specs:
            return
        import tensorflow_transform as tft

        output = tft.TFTransformOutput(transform_graph_dir)
        raw = output.raw_feature_spec()
        for spec in specs:
            if not isinstance(raw.get(spec.raw_name), tf.io.VarLenFeature):
                raise ExportError(
                    f"query feature {spec.name!r} needs the optional raw column {spec.raw_name!r}, but Transform was "
                    f"run on {sorted(raw)}; run it with the same preset"
                )
            self._dtypes[spec.name] = raw[spec.raw_name].dtype
        self._transform = output.transform_features_layer()

    def input_specs(self) -> dict[str, tf.TensorSpec]:
        """Serving inputs by feature name."""
        return {
            spec.name: tf.TensorSpec(
                [None, None] if spec.kind == "multi_valued" else [None], self._dtypes[spec.name], name=spec.name
            )
            for spec in self._specs
        }

    def encoder_specs(self) -> dict[str, tf.TensorSpec]:
        """What `from_raw` and `from_examples` return, by transformed name."""
        columns = [feature_column(spec) for spec in self._specs]
        return {
            column.name: tf.TensorSpec([None, column.width], tf.float32 if column.is_numeric else tf.int32)
            for column in columns
        }

    def parsing_spec(self) -> dict[str, Any]:
        """Feature spec of the raw columns in a tf.Example."""
        return {spec.raw_name: tf.io.VarLenFeature(self._dtypes[spec.name]) for spec in self._specs}

    def from_raw(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Encoder inputs from serving inputs."""
        return self.from_examples({spec.raw_name: _present_values(inputs[spec.name]) for spec in self._specs})

    def from_examples(self, parsed: Mapping[str, tf.SparseTensor]) -> dict[str, tf.Tensor]:
        """Encoder inputs `(B, width)` from parsed raw columns."""
        if not self._specs:
            return {}
        from models.preprocessing import dense_features

        inputs = {spec.raw_name: parsed[spec.raw_name] for spec in self._specs}
        # The graph transforms a context together with those of the history's events; here there are none of these.
        events = {s.learnt_name: _none_of(inputs[s.raw_name]) for s in self._specs if s.tower == "context"}
        transformed = self._transform({**inputs, **events})
        return dense_features(transformed, [feature_column(spec) for spec in self._specs])


def _none_of(sparse: tf.SparseTensor) -> tf.SparseTensor:
    """No value, in a tensor of the same type and number of rows."""
    nothing = tf.zeros([0, 2], tf.int64)
    return tf.SparseTensor(
        nothing, tf.zeros([0], sparse.dtype), tf.stack([sparse.dense_shape[0], tf.constant(0, tf.int64)])
    )


def _present_values(values: tf.Tensor) -> tf.SparseTensor:
    """`(B,)` or `(B, n)` values as a sparse tensor without the missing ones."""
    from models.preprocessing import is_known

    if values.shape.rank == 1:
        values = values[:, tf.newaxis]
    where = tf.where(is_known(values))
    return tf.SparseTensor(where, tf.gather_nd(values, where), tf.shape(values, tf.int64))
