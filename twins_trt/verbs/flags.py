"""One table for each verb: which flag of a command line is which field of its request.

The table adds the flags to a parser, reads a request off a parsed line, writes the line of a request, and tells errors
what the caller calls a field (`spelling`).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from twins_trt.errors import UsageError
from twins_trt.spelling import spelled
from twins_trt.verbs.kinds import TEXT, Kind

R = TypeVar("R")


@dataclass(frozen=True)
class Flag:
    """One flag.

    option: as it is typed, `--size`; a word without dashes, such as `MODEL`, is an argument by its place.
    field: of the request. help: `{default}` in it stands for the field's default. kind: of the value.
    sets: the value that a flag without one gives its field (`--no-fallback` gives False); None where a value follows.
    group: the heading that help shows it below. nargs: as argparse takes it, for arguments by place and lists.
    repeated: given once for each of several values. required: a command line must have it.
    """

    option: str
    field: str
    help: str
    kind: Kind = TEXT
    metavar: str | None = None
    sets: bool | None = None
    group: str = ""
    nargs: str | int | None = None
    repeated: bool = False
    required: bool = False

    @property
    def positional(self) -> bool:
        return not self.option.startswith("-")

    @property
    def several(self) -> bool:
        """Whether the field holds several values of the kind."""
        return self.repeated or self.nargs in ("*", "+") or isinstance(self.nargs, int)


@dataclass(frozen=True)
class FlagTable(Generic[R]):
    """All flags of a verb.

    request: the frozen dataclass that they fill. defaults: holds, by field, every default that does not depend on
    other fields; where it is None, the request's own fields have them. groups: by heading, what help says below it.
    """

    request: type[R]
    flags: tuple[Flag, ...]
    defaults: object | None = None
    groups: Mapping[str, str] = field(default_factory=dict)

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Adds every flag. A field that the line does not mention stays out of the namespace."""
        headings: dict[str, argparse._ArgumentGroup] = {}
        for flag in self.flags:
            place: argparse._ActionsContainer = parser
            if flag.group:
                if flag.group not in headings:
                    headings[flag.group] = parser.add_argument_group(flag.group, self.groups.get(flag.group))
                place = headings[flag.group]
            place.add_argument(flag.option, **self._settings(flag))

    def _settings(self, flag: Flag) -> dict[str, Any]:
        settings: dict[str, Any] = {"help": self.help_of(flag), "default": argparse.SUPPRESS}
        if not flag.positional:
            settings["dest"] = flag.field
        if flag.sets is not None:
            return settings | {"action": "store_const", "const": flag.sets}
        settings["metavar"] = flag.option if flag.positional else flag.metavar
        if flag.positional:
            return settings | {"nargs": flag.nargs}
        if flag.required:
            settings["required"] = True
        if flag.kind.read in (int, float):  # whose errors argparse words well
            settings["type"] = flag.kind.read
        if flag.repeated:
            return settings | {"action": "append"}
        return settings | ({} if flag.nargs is None else {"nargs": flag.nargs})

    def help_of(self, flag: Flag) -> str:
        """The flag's help, its default in words."""
        if "{default}" not in flag.help:
            return flag.help
        return flag.help.replace("{default}", flag.kind.show(self.default_of(flag.field)))

    def default_of(self, name: str) -> Any:
        """What a field is where nothing was said; None where that depends on other fields."""
        if self.defaults is not None:
            return getattr(self.defaults, name, None)
        found = self.request.__dataclass_fields__[name]  # type: ignore[attr-defined]
        return found.default_factory() if found.default is dataclasses.MISSING else found.default

    def read(self, arguments: argparse.Namespace) -> R:
        """The request of a parsed line. Raises `UsageError` for a value that is none of its kind."""
        given = vars(arguments)
        values = {}
        for flag in self.flags:
            name = flag.option if flag.positional else flag.field
            if name in given:
                values[flag.field] = given[name]
        return self.request(**values)

    def ask(self, more: R | None = None, /, **fields: Any) -> R:
        """The request of these fields, of which None says nothing, and of those that `more` says.

        Raises `UsageError` where both say one, or a value is none of its kind.
        """
        given = {name: value for name, value in fields.items() if value is not None}
        if more is not None and not isinstance(more, self.request):
            raise UsageError(f"more is {more!r}", f"give a {self.request.__name__}")
        if more is None:
            return self.request(**given)
        said = {flag.field for flag in self.flags if getattr(more, flag.field) != self._silent(flag.field)}
        if twice := sorted(said & set(given)):
            raise UsageError(
                f"{twice[0]} is given twice", f"leave it out of {self.request.__name__}, or out of the call"
            )
        return dataclasses.replace(more, **given)  # type: ignore[type-var]

    def _silent(self, name: str) -> Any:
        """What a field holds where nothing was said."""
        return None if self.defaults is not None else self.default_of(name)

    def words(self, request: R) -> list[str]:
        """The arguments that ask for `request`: what it says, in the table's order; its defaults are left out."""
        first, rest = [], []
        for flag in self.flags:
            value = getattr(request, flag.field)
            if value is None or value == self.default_of(flag.field):
                continue
            shown = list(map(flag.kind.show, value)) if flag.several else [flag.kind.show(value)]
            if flag.positional:
                first += shown
            elif flag.sets is not None:
                rest += [flag.option] if value == flag.sets else []
            elif flag.repeated:
                rest += [word for each in shown for word in (flag.option, each)]
            elif shown[0].startswith("-"):  # else argparse takes it for another option
                rest.append(f"{flag.option}={shown[0]}")
            else:
                rest += [flag.option, *shown]
        return [*first, *rest]

    def of(self, name: str) -> Flag | None:
        """The flag that sets a field."""
        return next((flag for flag in self.flags if flag.field == name), None)


def settle(request: object, flags: Iterable[Flag]) -> None:
    """Brings every field of a new request into the one form of its kind. Raises `UsageError`, naming the field."""
    for flag in flags:
        value = getattr(request, flag.field)
        if value is None:
            continue
        if flag.several and isinstance(value, (str, os.PathLike)):
            value = (value,)  # one, not a list of its letters
        try:
            taken = tuple(map(flag.kind.take, value)) if flag.several else flag.kind.take(value)
        except UsageError as error:
            raise UsageError(f"{spelled(flag.field)}: {error.cause}", error.fix) from error
        except (TypeError, ValueError, AttributeError) as error:  # of another type than a kind looks for
            raise UsageError(f"{spelled(flag.field)} cannot be {value!r}", "give a value of its kind") from error
        object.__setattr__(request, flag.field, taken)
