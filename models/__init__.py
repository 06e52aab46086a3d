"""The two-tower model: features, towers, losses, training, compression and export.

Importing this package imports nothing heavy. `models.keras` hands out TensorFlow and Keras 2.
"""
