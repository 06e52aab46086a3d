"""What makes the served model smaller: row storage, pruning, quantisation of the encoder.

Importing this package imports no TensorFlow; import the modules.
"""
