"""Parts of the exported graph: raw strings in, rows inside, item ids out.

Each part is a `tf.Module` (state) or a pure function of tensors; `models.export` composes them into the
signatures. Only stock TensorFlow operations, state only in variables and asset files.
"""
