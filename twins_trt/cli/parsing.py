"""The parser of a command line, with the options of every command, and the error for unknown ones."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable
from typing import NoReturn

from twins_trt.errors import UsageError


class Parser(argparse.ArgumentParser):
    """An argument parser that raises this package's errors, so that they print and exit like all others."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"{self.prog} -h")


def new_parser(prog: str, *, summary: str, example: str) -> Parser:
    """The parser of one command, with the options that every command has."""
    parser = Parser(
        prog=prog,
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, and nothing else there")
    parser.add_argument("-v", "--verbose", action="count", help="say more on stderr; -vv: everything")
    return parser


def unknown_options(parser: Parser, extra: list[str]) -> UsageError:
    """The error for arguments that a command does not have, with an option of similar spelling."""
    known = [text for action in parser._actions for text in action.option_strings]
    near = nearest(extra[0].partition("=")[0].lstrip("-"), [text.lstrip("-") for text in known])
    what = "option" if extra[0].startswith("-") else "argument"
    hint = f"did you mean --{near[0]}? " if near and what == "option" else ""
    return UsageError(f"{parser.prog} has no {what} {extra[0]!r}", f"{hint}{parser.prog} -h lists them")


def nearest(word: str, words: Iterable[str]) -> list[str]:
    """Up to three of `words` with a spelling like `word`, the nearest first."""
    return difflib.get_close_matches(word, list(words), n=3, cutoff=0.6)
