"""Values that are not known when the file is loaded: expressions, texts that hold some, and their values in time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from headrace.pipeline.expressions import ExpressionFailed, evaluate
from headrace.pipeline.problems import shown
from headrace.pipeline.templates import pieces

Functions = Mapping[str, Callable[..., Any]]
Compute = Callable[[str, Mapping[str, Any], Functions | None], Any]
"""`expressions.evaluate`, or an `Evaluator`'s."""


@dataclass(frozen=True, slots=True)
class Expression:
    """One CEL expression. `place`: where it stands, as `file:line:column`, for whoever is told that it failed."""

    text: str
    place: str = ""


@dataclass(frozen=True, slots=True)
class Template:
    """A text with expressions in it, in the order of the file. One expression alone keeps the type of its value."""

    parts: tuple[str | Expression, ...]

    @property
    def expressions(self) -> tuple[Expression, ...]:
        """Those in it."""
        return tuple(each for each in self.parts if isinstance(each, Expression))


Text = str | Template
"""A text that is known, or one that is known when its expressions can be evaluated."""


def template(text: str, place_of: Callable[[int], str]) -> Template:
    """A text split into its parts; `place_of` gives the place of an offset. Raises `templates.Unclosed`."""
    return Template(
        tuple(Expression(each.text, place_of(each.at)) if each.is_expression else each.text for each in pieces(text))
    )


class EvaluationFailed(Exception):
    """An expression that could not be computed. The message is one sentence with its place."""

    def __init__(self, expression: Expression, why: str) -> None:
        where = f"{expression.place}: " if expression.place else ""
        self.sentence = f"{shown(' '.join(expression.text.split()), 200)} cannot be computed: {why}"
        """The same without its place."""
        super().__init__(f"{where}{self.sentence}")
        self.expression = expression


def value_of(
    expression: Expression,
    values: Mapping[str, Any],
    functions: Functions | None = None,
    *,
    compute: Compute = evaluate,
) -> Any:
    """The value as plain data. Raises `EvaluationFailed`."""
    try:
        return compute(expression.text, values, functions)
    except ExpressionFailed as error:
        raise EvaluationFailed(expression, str(error)) from error


def truth_of(
    expression: Expression,
    values: Mapping[str, Any],
    functions: Functions | None = None,
    *,
    compute: Compute = evaluate,
) -> bool:
    """The value of a condition. Raises `EvaluationFailed`, also for one that is neither true nor false."""
    value = value_of(expression, values, functions, compute=compute)
    if not isinstance(value, bool):
        raise EvaluationFailed(expression, f"a condition is true or false, and this is {described(value)}")
    return value


def rendered(
    text: Text, values: Mapping[str, Any], functions: Functions | None = None, *, compute: Compute = evaluate
) -> Any:
    """The text with its expressions' values; a single expression gives its value as it is.

    Raises `EvaluationFailed`, also for a list, a map or nothing within text.
    """
    if isinstance(text, str):
        return text
    if len(text.parts) == 1 and isinstance(text.parts[0], Expression):
        return value_of(text.parts[0], values, functions, compute=compute)
    found = []
    for part in text.parts:
        if isinstance(part, str):
            found.append(part)
            continue
        value = value_of(part, values, functions, compute=compute)
        if value is None or isinstance(value, list | dict):
            raise EvaluationFailed(
                part, f"within text stands a string, a number or a bool, and this is {described(value)}"
            )
        found.append(as_text(value))
    return "".join(found)


def text_of(
    text: Text, values: Mapping[str, Any], functions: Functions | None = None, *, compute: Compute = evaluate
) -> str:
    """`rendered` as a text. Raises `EvaluationFailed`."""
    value = rendered(text, values, functions, compute=compute)
    if value is None or isinstance(value, list | dict):
        assert isinstance(text, Template)
        raise EvaluationFailed(
            text.expressions[0], f"a string, a number or a bool is wanted, and this is {described(value)}"
        )
    return as_text(value)


def as_text(value: object) -> str:
    """A value as it stands within text: `true`, `3`, `3.11`."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else repr(value)


def described(value: Any) -> str:
    """What a value is, for people."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "a bool"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case _:
            return "a map"
