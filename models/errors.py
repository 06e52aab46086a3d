"""Errors of the model code that a user can mend."""


class SettingError(ValueError):
    """A setting of the preset does not go with the data or the model that it names; the message says how to mend it."""


__all__ = ["SettingError"]
