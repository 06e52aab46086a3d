"""`preprocessing_fn` of the stock side of `data_path.py`: the same features of an interaction, row by row."""

import tensorflow as tf
import tensorflow_transform as tft


def preprocessing_fn(inputs):
    """Rows of users and items by vocabulary, times as they are, the weight as a z-score."""

    def dense(name):
        value = inputs[name]
        return tf.sparse.to_dense(value) if isinstance(value, tf.SparseTensor) else value

    return {
        "user": tft.compute_and_apply_vocabulary(dense("user_id"), vocab_filename="users"),
        "item": tft.compute_and_apply_vocabulary(dense("item_id"), vocab_filename="items"),
        "timestamp": tf.cast(dense("timestamp"), tf.int64),
        "weight": tft.scale_to_z_score(tf.cast(dense("rating"), tf.float32)),
    }
