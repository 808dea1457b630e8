"""The command line: one program, one configuration."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any

from equitomo.cli.options import Demo, Reconstruct, Train
from equitomo.cli.parsing import names_of, parse
from equitomo.cli.wording import with_options

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0 if it worked, 1 if a check found something to mend, a training diverged or a tomogram of a table failed, 2 for
    bad input, 130 if interrupted after saving, 74 if writing failed.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        command = parse(given)
    except (ValueError, OSError) as error:
        # The parser does not catch all, such as a number with thousands of digits.
        print(f"equitomo: {error}", file=sys.stderr)
        return 2
    # Only now, with the arguments in order, is it worth waiting for torch.
    from equitomo.cli import commands
    from equitomo.training.distributed import find_world

    if not isinstance(command, Reconstruct | Demo | Train) and (n_processes := find_world().size) > 1:
        name = type(command).__name__.lower()
        message = f"{name} is the work of one process, but {n_processes} were started: leave out torchrun or srun"
        print(f"equitomo: {message}", file=sys.stderr)
        return 2
    names = names_of(type(command))

    def show(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
        print(f"equitomo: warning: {with_options(str(message), names)}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        return commands.run(command, given, names)
