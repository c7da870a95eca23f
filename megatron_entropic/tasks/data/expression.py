"""Filters that users write, such as `level >= 3 and "geometry" in topic and len(answer) < 20`: parsed, never executed as Python.

Fields of a row by name, fields of fields as a.b or a["b"], numbers, texts, lists, and/or/not, comparisons, in, + - * / // %, len, abs,
min, max, int, float, str, lower, upper, strip, startswith, endswith, count. A field that a row lacks, or of null, is None.
"""

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

LONGEST = 2000
"""Characters of an expression."""
RowValue = Callable[[Mapping[str, Any]], Any]


class ExpressionError(ValueError):
    """An expression cannot be read, or does not fit a row; the message names it."""


_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda one, other: one in other,
    ast.NotIn: lambda one, other: one not in other,
    ast.Is: lambda one, other: one is other,
    ast.IsNot: lambda one, other: one is not other,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.Not: operator.not_, ast.USub: operator.neg, ast.UAdd: operator.pos}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "len": len,
    "abs": abs,
    "min": min,
    "max": max,
    "int": lambda value: int(_short(value)),
    "float": lambda value: float(_short(value)),
    "str": str,
}
_METHODS = ("lower", "upper", "strip", "startswith", "endswith", "count")


class Expression:
    """A filter, compiled. `fields` are the names of the row's fields that it reads; calling it says whether a row passes."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.fields: set[str] = set()
        if len(text) > LONGEST:
            raise ExpressionError(f"{text[:60]!r}...: longer than {LONGEST} characters")
        try:
            self._value = self._compiled(ast.parse(text.strip(), mode="eval").body)
        except (SyntaxError, RecursionError, MemoryError) as error:
            raise ExpressionError(f"{text!r}: is no expression: {getattr(error, 'msg', None) or type(error).__name__}") from None

    def __call__(self, row: Mapping[str, Any]) -> bool:
        """Whether the row passes. Raises ExpressionError where its values do not fit."""
        try:
            return bool(self._value(row))
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            used = ", ".join(f"{name}={_shown(row.get(name))}" for name in sorted(self.fields))
            raise ExpressionError(f"{self.text!r}: {error} ({used})") from None

    def _compiled(self, node: ast.expr) -> RowValue:
        make = _NODES.get(type(node))
        if make is None:
            raise ExpressionError(f"{self.text!r}: {ast.unparse(node)!r} is not among what a filter may hold (docs/data.md)")
        value: RowValue = make(self, node)
        return value

    def _constant(self, node: ast.Constant) -> RowValue:
        if not isinstance(node.value, str | int | float | None):
            raise ExpressionError(f"{self.text!r}: {node.value!r} is no number or text")
        return lambda row: node.value

    def _name(self, node: ast.Name) -> RowValue:
        self.fields.add(node.id)
        return lambda row: row.get(node.id)

    def _attribute(self, node: ast.Attribute) -> RowValue:
        return self._item(node.value, lambda row: node.attr)

    def _subscript(self, node: ast.Subscript) -> RowValue:
        if isinstance(node.slice, ast.Slice):
            raise ExpressionError(f"{self.text!r}: {ast.unparse(node)!r}: one element only, by its number or name")
        return self._item(node.value, self._compiled(node.slice))

    def _item(self, of: ast.expr, key: RowValue) -> RowValue:
        container = self._compiled(of)

        def value(row: Mapping[str, Any]) -> Any:
            held = container(row)
            if held is None or isinstance(held, Mapping):
                return held.get(key(row)) if held is not None else None
            if isinstance(held, list | str) and isinstance(at := key(row), int):
                return held[at]
            raise TypeError(f"{ast.unparse(of)} is {type(held).__name__}, which has no {key(row)!r}")

        return value

    def _sequence(self, node: ast.List | ast.Tuple | ast.Set) -> RowValue:
        items = [self._compiled(item) for item in node.elts]
        return lambda row: [item(row) for item in items]

    def _bool(self, node: ast.BoolOp) -> RowValue:
        parts = [self._compiled(part) for part in node.values]
        if isinstance(node.op, ast.And):
            return lambda row: all(part(row) for part in parts)
        return lambda row: any(part(row) for part in parts)

    def _unary(self, node: ast.UnaryOp) -> RowValue:
        function, operand = _UNARY.get(type(node.op)), self._compiled(node.operand)
        if function is None:
            raise ExpressionError(f"{self.text!r}: {ast.unparse(node)!r} is not among what a filter may hold (docs/data.md)")
        return lambda row: function(operand(row))

    def _binary(self, node: ast.BinOp) -> RowValue:
        function, left, right = _ARITHMETIC.get(type(node.op)), self._compiled(node.left), self._compiled(node.right)
        if function is None:
            raise ExpressionError(f"{self.text!r}: {ast.unparse(node)!r} is not among what a filter may hold (docs/data.md)")

        def value(row: Mapping[str, Any]) -> Any:
            one, other = left(row), right(row)
            if not (isinstance(one, int | float) and isinstance(other, int | float)):
                raise TypeError(
                    f"{ast.unparse(node)!r} computes with {type(one).__name__} and {type(other).__name__}, not with numbers"
                )
            return function(one, other)

        return value

    def _compare(self, node: ast.Compare) -> RowValue:
        operands = [self._compiled(operand) for operand in (node.left, *node.comparators)]
        tests = [_COMPARISONS[type(op)] for op in node.ops]

        def value(row: Mapping[str, Any]) -> bool:
            values = [operand(row) for operand in operands]
            return all(test(values[at], values[at + 1]) for at, test in enumerate(tests))

        return value

    def _call(self, node: ast.Call) -> RowValue:
        arguments = [self._compiled(argument) for argument in node.args]
        if node.keywords:
            raise ExpressionError(f"{self.text!r}: {ast.unparse(node)!r}: arguments have no names here")
        if isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS:
            function = _FUNCTIONS[node.func.id]
            return lambda row: function(*(argument(row) for argument in arguments))
        if isinstance(node.func, ast.Attribute) and node.func.attr in _METHODS:
            return self._method(node.func.attr, self._compiled(node.func.value), arguments)
        known = ", ".join([*_FUNCTIONS, *(f"TEXT.{name}" for name in _METHODS)])
        raise ExpressionError(f"{self.text!r}: {ast.unparse(node.func)!r} is no function of filters; there are {known}")

    def _method(self, name: str, text: RowValue, arguments: list[RowValue]) -> RowValue:
        def value(row: Mapping[str, Any]) -> Any:
            held, given = text(row), [argument(row) for argument in arguments]
            if not isinstance(held, str) or not all(isinstance(each, str) for each in given):
                raise TypeError(f"{name} is of texts, not of {type(held).__name__}")
            return getattr(held, name)(*given)

        return value


_NODES: dict[type[ast.expr], Callable[..., RowValue]] = {
    ast.Constant: Expression._constant,
    ast.Name: Expression._name,
    ast.Attribute: Expression._attribute,
    ast.Subscript: Expression._subscript,
    ast.List: Expression._sequence,
    ast.Tuple: Expression._sequence,
    ast.Set: Expression._sequence,
    ast.BoolOp: Expression._bool,
    ast.UnaryOp: Expression._unary,
    ast.BinOp: Expression._binary,
    ast.Compare: Expression._compare,
    ast.Call: Expression._call,
}


def _short(value: Any) -> Any:
    if isinstance(value, str) and len(value) > 400:
        raise ValueError("a text of more than 400 characters is no number")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
