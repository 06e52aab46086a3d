"""Search of settings: `space` says what may change, `trial` trains and measures one choice, `search` asks KerasTuner.

Importing this package imports no TensorFlow; import the modules.
"""
