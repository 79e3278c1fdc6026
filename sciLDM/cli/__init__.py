"""The command `scildm`: from a configuration to a model, from a model to samples, scores and a report."""

import os
import sys
from collections.abc import Sequence

from sciLDM.cli._console import fail, note
from sciLDM.cli._parser import UsageError, parse
from sciLDM.errors import SciLDMError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; those of the process when None.

    Returns:
        Exit status: 0 done, 2 something to put right (said in one line), 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or os.environ.get("SCILDM_DEBUG", "") not in ("", "0")
    try:
        args = parse(arguments)
        return args.run_command(args) or 0
    except UsageError as error:
        fail(f"{error}")
        return 2
    except KeyboardInterrupt:
        if debug:
            raise
        note("interrupted; run the same command again to continue")
        return 130
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; what Python flushes at exit must not complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (SciLDMError, OSError) as error:
        if debug:
            raise
        fail(str(error))
        if not isinstance(error, SciLDMError):
            note("the same command with --debug shows where this comes from")
        return 2
