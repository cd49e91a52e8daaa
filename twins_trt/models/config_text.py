"""Reads the configuration that mmsegmentation keeps in a checkpoint as text. It is parsed, never executed.

mmengine (`meta["cfg"]`) and mmcv (`meta["config"]`) write Python: assignments of literals and of `dict(...)`. Old mmcv
wrote the files as they were, each behind a line with its path, the base files first. Only literals, `dict`, `list` and
`tuple`, names assigned before, and sums and products of literals are understood. Everything else is left out and named.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LONGEST = 1 << 19  # characters; mmsegmentation's own configurations have about 10,000
DEEPEST = 60  # values within values
MOST_VALUES = 100_000  # those behind names are counted each time; mmsegmentation's own have about 500
LARGEST = 1 << 63  # a whole number
MOST_ITEMS = 1000  # or characters, of what a sum or a product makes

_FILE_LINE = re.compile(r"\S.*\.py")


@dataclass(frozen=True)
class ParsedConfig:
    """A configuration as nested dicts, lists and plain values.

    missing_bases: files that it builds on, and that are not in the text. unread: dotted places of values that were not
    understood, or the reason why nothing was.
    """

    values: Mapping[str, Any]
    missing_bases: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


def parse_config(text: object) -> ParsedConfig:
    """The configuration in a text. Raises nothing: whatever is no configuration is `unread`."""
    if not isinstance(text, str):
        return ParsedConfig({}, unread=(f"a configuration of type {type(text).__name__}",))
    if len(text) > LONGEST:
        return ParsedConfig({}, unread=(f"a configuration of {len(text)} characters",))
    if _FILE_LINE.fullmatch(text.strip()) and "\n" not in text.strip() and "=" not in text:
        return ParsedConfig({}, missing_bases=(text.strip(),))
    reader = _Reader()
    for _, part in (files := _files(text)):
        reader.read(part)
    present = {_base_name(name) for name, _ in files}
    missing = tuple(base for base in dict.fromkeys(reader.bases) if _base_name(base) not in present)
    return ParsedConfig(reader.values, missing, tuple(dict.fromkeys(reader.unread)))


def check_config(values: Mapping[str, Any]) -> ParsedConfig:
    """A configuration that is a mapping already. One that is too large or too deep is left out whole, and `unread`."""
    try:
        _count_values(values, MOST_VALUES)
    except _Unread:
        return ParsedConfig({}, unread=("a configuration of too many values",))
    return ParsedConfig(values)


def _base_name(path: str) -> str:
    return path.replace("\\", "/").rpartition("/")[2]


def _files(text: str) -> list[tuple[str, str]]:
    """The files in a text, as (path, content); text without such lines is one file without a path."""
    files: list[tuple[str, list[str]]] = [("", [])]
    for line in text.splitlines():
        if _FILE_LINE.fullmatch(line) and not set(line) & set("=()[]{}'\"#,"):
            files.append((line, []))
        else:
            files[-1][1].append(line)
    return [(name, "\n".join(lines)) for name, lines in files if name or any(line.strip() for line in lines)]


class _Unread(Exception):
    """A value that is no literal, or too large."""


def _count_values(value: object, most: int) -> int:
    """How many values there are in this one. Raises `_Unread` for more than `most`, or for too many levels."""
    count = 0
    left: list[tuple[object, int]] = [(value, 0)]
    while left:
        each, depth = left.pop()
        count += 1
        if count > most or depth > DEEPEST or (isinstance(each, int) and abs(each) > LARGEST):
            raise _Unread
        if isinstance(each, (Mapping, list)):
            left += [(item, depth + 1) for item in (each.values() if isinstance(each, Mapping) else each)]
    return count


class _Reader:
    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.bases: list[str] = []
        self.unread: list[str] = []
        self._own: dict[str, Any] = {}
        self._left = MOST_VALUES

    def read(self, text: str) -> None:
        """Reads one file, over those that were read before."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of escapes in its strings
                tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            line = getattr(error, "lineno", None)
            self.unread.append("text that is no Python" + (f", line {line}" if line else ""))
            return
        self._own = {}
        for statement in tree.body:
            if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
                target = statement.targets[0]
                if isinstance(target, ast.Name):
                    self._assign(target.id, statement.value)
                    continue
            if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):  # a docstring
                self.unread.append(f"line {statement.lineno}")
        self.values = _merged(self.values, self._own)

    def _assign(self, name: str, node: ast.expr) -> None:
        try:
            value = self._value(node, name, 0)
        except _Unread:
            self.unread.append(name)
            return
        try:
            self._left -= _count_values(value, self._left)
        except _Unread:
            self._left //= 2  # so that many such values cost no more than one
            self.unread.append(name)
            return
        if name == "_base_":
            self.bases += [base for base in (value if isinstance(value, list) else [value]) if isinstance(base, str)]
        else:
            self._own[name] = value

    def _spend(self, count: int) -> None:
        """Bounds what names that stand for large values cost, together."""
        self._left -= min(count, self._left)
        if not self._left:
            raise _Unread

    def _value(self, node: ast.expr, place: str, depth: int) -> Any:
        if depth > DEEPEST:
            raise _Unread
        deeper = depth + 1
        match node:
            case ast.Constant(value=value) if value is None or isinstance(value, (bool, int, float, str)):
                return value
            case ast.List(elts=items) | ast.Tuple(elts=items):
                return [self._value(item, f"{place}.{i}", deeper) for i, item in enumerate(items)]
            case ast.Dict(keys=keys, values=values):
                return self._mapping(zip(keys, values, strict=True), place, deeper)
            case ast.Call(func=ast.Name(id="dict"), args=[], keywords=words):
                pairs = [(None if word.arg is None else ast.Constant(word.arg), word.value) for word in words]
                return self._mapping(pairs, place, deeper)
            case ast.Call(func=ast.Name(id="list" | "tuple"), args=[only], keywords=[]):
                value = self._value(only, place, deeper)
                if isinstance(value, list):
                    return value
            case ast.Name(id=name):
                return self._named(name)
            case ast.Attribute(value=ast.Name(id="_base_"), attr=name):
                return self._named(name)
            case ast.Set(elts=[ast.Set(elts=[inner])]):  # {{_base_.name}}
                return self._value(inner, place, deeper)
            case ast.Attribute(value=owner, attr=name):
                value = self._value(owner, place, deeper)
                if isinstance(value, dict) and name in value:
                    return value[name]
            case ast.Subscript(value=owner, slice=ast.Constant(value=key)):
                value = self._value(owner, place, deeper)
                if isinstance(value, dict) and key in value:
                    return value[key]
                if isinstance(value, list) and type(key) is int and -len(value) <= key < len(value):
                    return value[key]
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
                value = self._value(operand, place, deeper)
                if _is_number(value):
                    return -value if isinstance(sign, ast.USub) else value
            case ast.BinOp(left=left, op=operator, right=right):
                return _combined(self._value(left, place, deeper), operator, self._value(right, place, deeper))
        raise _Unread

    def _named(self, name: str) -> Any:
        for names in (self._own, self.values):
            if name in names:
                return names[name]
        raise _Unread

    def _mapping(self, pairs: Any, place: str, depth: int) -> dict[str, Any]:
        """A dict without the values that are not understood, whose places are kept."""
        result: dict[str, Any] = {}
        for key, node in pairs:
            if key is None:  # **mapping
                more = self._value(node, place, depth)
                if not isinstance(more, dict):
                    raise _Unread
                self._spend(len(more) + 1)
                result |= more
                continue
            name = str(self._value(key, place, depth))
            try:
                result[name] = self._value(node, f"{place}.{name}", depth)
            except _Unread:
                self.unread.append(f"{place}.{name}")
        return result


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _combined(left: Any, operator: ast.operator, right: Any) -> Any:
    """A sum of literals, or a product that stays small."""
    if _is_number(left) and _is_number(right):
        if max(abs(left), abs(right)) > 1e12:
            raise _Unread
        match operator:
            case ast.Add():
                return left + right
            case ast.Sub():
                return left - right
            case ast.Mult():
                return left * right
            case ast.Div() if right:
                return left / right
            case ast.FloorDiv() if right:
                return left // right
        raise _Unread
    same = type(left) is type(right) and isinstance(left, (str, list))
    if isinstance(operator, ast.Add) and same and len(left) + len(right) <= MOST_ITEMS:
        return left + right
    repeats = isinstance(operator, ast.Mult) and isinstance(left, list) and type(right) is int
    if repeats and right >= 0 and len(left) * right <= MOST_ITEMS:
        return left * right
    raise _Unread


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A base file's values with those of the file that builds on it, as mmengine merges them."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        if isinstance(value, dict):
            own = {name: item for name, item in value.items() if name != "_delete_"}
            merges = isinstance(below, dict) and value.get("_delete_") is not True
            result[key] = _merged(below or {}, own) if merges else own
        else:
            result[key] = value
    return result
