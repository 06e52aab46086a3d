"""The two-tower model: features, towers, losses, training, compression and export.

Importing this package imports nothing heavy. `models.keras` is the one place that selects
Keras 2 (`TF_USE_LEGACY_KERAS`) and hands out `tf` and `tf_keras`.
"""
