"""Files to run a pushed model on stock TensorFlow Serving, filled in from the run that pushed it (`tandem deploy`)."""

__all__: list[str] = []
