"""From a command line to arguments. Parsing imports no heavy library, so `--help` and mistakes answer at once."""

import argparse
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NoReturn, final

from sciLDM import __version__
from sciLDM.cli._near import near
from sciLDM.cli._options import ADD, COMMANDS
from sciLDM.errors import ConfigError

__all__ = ["UsageError", "parse"]


@final
class UsageError(ConfigError):
    """A command line that cannot be understood."""


@final
class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see `{self.prog} --help`)")

    def options(self) -> list[str]:
        """All option strings."""
        return [name for action in self._actions for name in action.option_strings]


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Arguments of the command named first; `run_command` is the function that runs it.

    Raises:
        UsageError: An unknown command or option (near ones are named), or a missing or malformed value.
    """
    head = _head()
    named = next((a for a in argv if not a.startswith("-")), None)
    if named is None or named not in COMMANDS:
        known, rest = head.parse_known_args([a for a in argv if a.startswith("-")])
        if named is not None:
            raise UsageError(f"no command {named!r}{near(named, COMMANDS)} (commands: {', '.join(COMMANDS)})")
        if rest:
            raise UsageError(f"no option {rest[0]!r}{near(rest[0], head.options())} (see `scildm --help`)")
        known.run_command = lambda _args: head.print_help()
        return known
    at = list(argv).index(named)
    before, after = list(argv[:at]), list(argv[at + 1 :])
    wrong = head.parse_known_args(before)[1]
    if wrong:
        raise UsageError(f"no option {wrong[0]!r}{near(wrong[0], head.options())} (see `scildm --help`)")
    parser = _command_parser(named)
    args, unknown = parser.parse_known_args(after)
    args.debug = args.debug or "--debug" in before
    if named == "fit":
        from sciLDM.cli._overrides import parse_overrides

        args.overrides = parse_overrides([*args.set, *unknown], parser.options())
    elif unknown:
        raise UsageError(_unknown(unknown[0], parser))
    args.run_command = _runner(named)
    return args


def _unknown(token: str, parser: _Parser) -> str:
    name = token.partition("=")[0]
    if not name.startswith("-"):
        return f"unexpected argument {token!r} (see `{parser.prog} --help`)"
    hint = near(name, parser.options())
    listed = ", ".join(o for o in parser.options() if o.startswith("--"))
    return f"no option {name!r}{hint} (options of `{parser.prog}`: {listed})"


_MODULES = {"models": "sciLDM.cli._shipped"}


def _runner(command: str) -> Callable[[argparse.Namespace], int | None]:
    return getattr(import_module(_MODULES.get(command, f"sciLDM.cli._{command}")), "run")  # noqa: B009 - a module is no typed object


def _head() -> _Parser:
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name.ljust(width)}  {what}" for name, what in COMMANDS.items())
    parser = _Parser(
        prog="scildm",
        usage="scildm COMMAND ...",
        description="Latent diffusion on scientific data.",
        epilog=f"commands:\n{listed}\n\n`scildm COMMAND --help` explains a command and its options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=f"sciLDM {__version__}", help="print the version"
    )
    parser.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    return parser


def _command_parser(command: str) -> _Parser:
    parser = _Parser(
        prog=f"scildm {command}",
        description=COMMANDS[command][0].upper() + COMMANDS[command][1:] + ".",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    ADD[command](parser)
    return parser
