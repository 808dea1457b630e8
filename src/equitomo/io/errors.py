"""The error and the warning that a file can cause."""


class FileFormatError(ValueError):
    """The file is damaged, or not of a kind that can be used."""


class FileFormatWarning(UserWarning):
    """The file can be used, but something about it may surprise."""
