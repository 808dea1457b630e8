"""Words for a terminal: docstrings without their markup, and errors of the library with options for arguments."""

from __future__ import annotations

import re
from collections.abc import Collection

# Arguments of the library whose option has another name.
_OPTIONS = {"folder": "out"}
_ARGUMENT = re.compile(r"`(\w+)(?:=(?:'([^'`]*)'|\"([^\"`]*)\"|([^`]+)))?`")


def plain(text: str) -> str:
    r"""Return a docstring's text for a terminal, in one line and without reStructuredText.

    Examples
    --------
    >>> plain("``'ball'`` as :math:`f(y)`, see :class:`~equitomo.TomogramPair` (:cite:t:`liu2022isotropic`).")
    "'ball' as f(y), see TomogramPair."
    """
    text = re.sub(r"\s*\(:cite:\w+:`[^`]*`\)", "", text)
    text = re.sub(r":[\w:]+:`~[\w.]*?(\w+)`", r"\1", text)
    text = re.sub(r":[\w:]+:`([^`]*)`", r"\1", text)
    text = re.sub(r"``([^`]*)``|`([^`]*)`|\$([^$]*)\$", lambda match: "".join(filter(None, match.groups())), text)
    return " ".join(text.split())


def option_of(name: str) -> str:
    """Return how an option is written: ``--tilt-axis`` for ``tilt_axis``."""
    return f"--{name.replace('_', '-')}"


def with_options(message: str, names: Collection[str]) -> str:
    """Return a message of the library with the command's options in place of the arguments in backticks.

    Arguments stand alone or with a value; those that are no option of the command stay as they are.

    Examples
    --------
    >>> with_options("lower `side`, pass `overwrite=True` or `nan='mean'`, not `data`", ["side", "overwrite", "nan"])
    'lower --side, pass --overwrite or --nan mean, not `data`'
    >>> with_options("use `tilts='-60,40'` or `flips=False`", ["tilts", "flips"])
    'use --tilts=-60,40 or --no-flips'
    """

    def option(match: re.Match[str]) -> str:
        name = _OPTIONS.get(match[1], match[1])
        if name not in names:
            return match[0]
        value = next((text for text in match.groups()[1:] if text is not None), "True")
        if value in ("True", "False"):
            return option_of(name if value == "True" else f"no_{name}")
        return f"{option_of(name)}{'=' if value.startswith('-') else ' '}{value}"

    return _ARGUMENT.sub(option, message)
