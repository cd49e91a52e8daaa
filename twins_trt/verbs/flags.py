"""One table for each verb: the flag of a command line for each field of its request.

A table adds its flags to a parser, makes a request of a parsed line and a line of a request, and gives errors the name
that the caller has for a field (`spelling`).
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

    option: as it is typed, `--size`; a word without dashes, such as `MODEL`, is a positional argument.
    field: of the request. help: `{default}` in it stands for the field's default. kind: of the value.
    sets: the value that a flag without one gives its field (`--no-fallback` gives False); None where a value follows.
    group: its heading in the help. nargs: as in argparse, for positional arguments and lists. repeated: the flag is
    given once for each of several values. pairs: each of them is NAME=VALUE, and the field is a mapping. required: a
    command line must have it.
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
    pairs: bool = False
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

    request: the frozen dataclass that they fill. defaults: an object with, by field, every default that does not depend
    on other fields; None where the request's own fields have them. groups: the help's text below each heading.
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
            place.add_argument(flag.option, **self._argument(flag))

    def _argument(self, flag: Flag) -> dict[str, Any]:
        """The arguments of `add_argument`."""
        argument: dict[str, Any] = {"help": self.help_of(flag), "default": argparse.SUPPRESS}
        if not flag.positional:
            argument["dest"] = flag.field
        if flag.sets is not None:
            return argument | {"action": "store_const", "const": flag.sets}
        argument["metavar"] = flag.option if flag.positional else flag.metavar
        if flag.positional:
            return argument | {"nargs": flag.nargs}
        if flag.required:
            argument["required"] = True
        if flag.kind.read in (int, float):  # whose errors argparse words well
            argument["type"] = flag.kind.read
        if flag.repeated:
            return argument | {"action": "append"}
        return argument | ({} if flag.nargs is None else {"nargs": flag.nargs})

    def help_of(self, flag: Flag) -> str:
        """The flag's help, with its default filled in."""
        if "{default}" not in flag.help:
            return flag.help
        return flag.help.replace("{default}", flag.kind.show(self.default_of(flag.field)))

    def default_of(self, name: str) -> Any:
        """The default of a field; None where it depends on other fields."""
        if self.defaults is not None:
            return getattr(self.defaults, name, None)
        field = self.request.__dataclass_fields__[name]  # type: ignore[attr-defined]
        return field.default_factory() if field.default is dataclasses.MISSING else field.default

    def read(self, arguments: argparse.Namespace) -> R:
        """The request of a parsed line. Raises `UsageError` for a value of the wrong kind."""
        given = vars(arguments)
        values = {}
        for flag in self.flags:
            name = flag.option if flag.positional else flag.field
            if name in given:
                values[flag.field] = given[name]
        return self.request(**values)

    def ask(self, more: R | None = None, /, **fields: Any) -> R:
        """The request with these fields, None being no value, and with the fields of `more`.

        Raises `UsageError` for a field in both, and for a value of the wrong kind.
        """
        given = {name: value for name, value in fields.items() if value is not None}
        if more is not None and not isinstance(more, self.request):
            raise UsageError(f"more is {more!r}", f"give a {self.request.__name__}")
        if more is None:
            return self.request(**given)
        in_more = {flag.field for flag in self.flags if getattr(more, flag.field) != self._unset(flag.field)}
        if twice := sorted(in_more & set(given)):
            raise UsageError(
                f"{twice[0]} is given twice", f"leave it out of {self.request.__name__}, or out of the call"
            )
        return dataclasses.replace(more, **given)  # type: ignore[type-var]

    def _unset(self, name: str) -> Any:
        """The value of a field that the caller left out."""
        return None if self.defaults is not None else self.default_of(name)

    def words(self, request: R) -> list[str]:
        """The words of a command line for `request`, in the table's order; defaults are left out."""
        positional, options = [], []
        for flag in self.flags:
            value = getattr(request, flag.field)
            if value is None or value == self.default_of(flag.field):
                continue
            if flag.pairs:
                value = [f"{name}={text}" for name, text in value.items()]
            shown = list(map(flag.kind.show, value)) if flag.several else [flag.kind.show(value)]
            if flag.positional:
                positional += shown
            elif flag.sets is not None:
                options += [flag.option] if value == flag.sets else []
            elif flag.repeated:
                options += [word for each in shown for word in (flag.option, each)]
            elif shown[0].startswith("-"):  # else argparse takes it for another option
                options.append(f"{flag.option}={shown[0]}")
            else:
                options += [flag.option, *shown]
        return [*positional, *options]

    def of(self, name: str) -> Flag | None:
        """The flag of a field, or None."""
        return next((flag for flag in self.flags if flag.field == name), None)


def settle(request: object, flags: Iterable[Flag]) -> None:
    """Converts every field of a new request to its kind. Raises `UsageError` that names the field."""
    for flag in flags:
        value = getattr(request, flag.field)
        if value is None:
            continue
        if flag.several and isinstance(value, (str, os.PathLike)):
            value = (value,)  # one text, not a list of its letters
        if flag.pairs and isinstance(value, Mapping):
            value = [f"{name}={text}" for name, text in value.items()]
        try:
            taken: Any = tuple(map(flag.kind.take, value)) if flag.several else flag.kind.take(value)
        except UsageError as error:
            raise UsageError(f"{spelled(flag.field)}: {error.cause}", error.fix) from error
        except (TypeError, ValueError, AttributeError) as error:  # a value of an unexpected type
            raise UsageError(f"{spelled(flag.field)} cannot be {value!r}", "give a value of its kind") from error
        object.__setattr__(request, flag.field, dict(each.split("=", 1) for each in taken) if flag.pairs else taken)
