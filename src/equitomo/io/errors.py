"""What is wrong, or surprising, with a file."""


class FileFormatError(ValueError):
    """The file is not what it says, or not of a kind that can be used."""


class FileFormatWarning(UserWarning):
    """The file can be used, but something about it may surprise."""
