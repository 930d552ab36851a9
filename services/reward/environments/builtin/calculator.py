"""`calculator`: a tool `calculate(expression)` for arithmetic. A turn without a call ends the episode; a grader scores it.

Numbers, `+ - * / // % **`, brackets, and abs, round, sqrt, min, max. Nothing is evaluated as Python: the expression is
parsed and walked. Whole numbers are exact up to MOST_BITS bits. The environment takes no settings.
"""

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, Final

from services.reward.environments.builtin.tool_calls import answer_calls, text_in
from sluice.environments import Message, Opening, Reply, Row, Tool

VERSION: Final = "1"

MOST_CHARACTERS: Final = 1_000
MOST_BITS: Final = 4_096

Number = int | float

_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "abs": abs,
    "round": round,
    "sqrt": math.sqrt,
    "min": min,
    "max": max,
}


class Calculator:
    """The environment."""

    tools = (
        Tool(
            name="calculate",
            description="Computes an arithmetic expression, for instance (17 + 4) * 3.",
            parameters={
                "type": "object",
                "properties": {"expression": {"type": "string", "description": "the expression"}},
                "required": ["expression"],
            },
        ),
    )

    def open(self, row: Row) -> Opening:
        """The row's chat, with the tool."""
        return Opening(tools=self.tools)

    def step(self, message: Message) -> Reply:
        """Computes what the turn asks for."""
        return answer_calls(message, {"calculate": _calculate})


def calculate(expression: str) -> str:
    """The value, written as people do. Raises ValueError with what is wrong, for the policy."""
    try:
        return _written(_value(ast.parse(expression.strip(), mode="eval").body))
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError("this is no arithmetic expression; write for instance (17 + 4) * 3") from None
    except (ArithmeticError, TypeError) as error:
        raise ValueError(str(error)) from None


def _calculate(arguments: Mapping[str, Any]) -> str:
    return calculate(text_in(arguments, "expression", most=MOST_CHARACTERS))


def _value(node: ast.expr) -> Number:
    match node:
        case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
            return _bounded(node.value)
        case ast.UnaryOp() if type(node.op) in _UNARY:
            return _UNARY[type(node.op)](_value(node.operand))
        case ast.BinOp() if type(node.op) in _BINARY:
            left, right = _value(node.left), _value(node.right)
            if isinstance(node.op, ast.Pow):
                _check_power(left, right)
            return _bounded(_BINARY[type(node.op)](left, right))
        case ast.Call(func=ast.Name(id=name), keywords=[]) if name in _FUNCTIONS:
            return _bounded(_FUNCTIONS[name](*map(_value, node.args)))
        case ast.BinOp(op=ast.BitXor()):
            raise ValueError("write a power as **, not ^")
    raise ValueError(f"only numbers, + - * / // % **, brackets and {', '.join(_FUNCTIONS)} are known")


def _check_power(base: Number, exponent: Number) -> None:
    if isinstance(base, int) and isinstance(exponent, int) and abs(exponent) * max(base.bit_length(), 1) > MOST_BITS:
        raise ValueError("the power is too large")


def _bounded(value: Any) -> Number:
    if isinstance(value, complex):
        raise ValueError("the result is no real number")
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise ValueError("the number is too large")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("the result is not finite")
    return value


def _written(value: Number) -> str:
    whole = isinstance(value, float) and value % 1 == 0 and abs(value) < 1e15
    return str(int(value)) if whole else str(value)
