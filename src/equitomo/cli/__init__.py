"""The command line: one program, one configuration."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from equitomo.cli.options import Training, name_of
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
        names = names_of(type(command))
        # Threads that spin while they wait for each other make a step on a shared machine several times as slow. OpenMP
        # reads this when torch is imported.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        # Only now, with the arguments in order, is it worth waiting for torch.
        from equitomo.cli import commands
        from equitomo.resources import use_usable_cores
        from equitomo.training.distributed import find_world

        use_usable_cores()
        if not isinstance(command, Training) and (n := find_world().size) > 1:
            raise ValueError(
                f"{name_of(type(command))} is the work of one process, but {n} were started: leave out torchrun or srun"
            )
    except (ValueError, OSError) as error:
        # The parser does not catch all, such as a number with thousands of digits.
        print(f"equitomo: {error}", file=sys.stderr)
        return 2

    def show(message: Warning | str, *given: Any, **more: Any) -> None:
        print(f"equitomo: warning: {with_options(str(message), names)}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        return commands.run(command, given, names)
