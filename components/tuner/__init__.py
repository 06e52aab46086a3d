"""Searches the preset's `[tuner]` space before the Trainer; the work is in `models.tuning`."""
