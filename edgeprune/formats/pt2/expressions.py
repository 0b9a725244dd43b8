"""Symbolic sizes in a .pt2, checked before PyTorch hands them to `sympy.sympify`, which evaluates Python."""

from __future__ import annotations

import ast
import re

from edgeprune.errors import UnsafeFileError

MAX_LENGTH = 4096
MAX_EXPONENT = 8
# `u0` and `zuf0` are counted up one by one when a program is loaded, so their numbers are kept short.
SYMBOL = re.compile(r"(?:s\d{1,6}|zf\d{1,6}|u\d{1,4}|zuf\d{1,4})")
_NUMBER = re.compile(r"-?\d{1,30}(?:\.\d{0,60})?(?:e[+-]?\d{1,3})?", re.IGNORECASE)
_POWERS = frozenset({"Pow", "PowByNatural", "FloatPow"})
_FUNCTIONS = _POWERS | frozenset(
    "Add Mul Max Min Rational Abs "
    "FloorDiv CeilDiv CleanDiv Mod PythonMod ModularIndexing IntTrueDiv FloatTrueDiv "
    "CeilToInt FloorToInt TruncToInt TruncToFloat RoundToInt RoundDecimal ToFloat Identity Where "
    "IsNonOverlappingAndDenseIndicator floor ceiling "
    "Eq Ne Lt Le Gt Ge Equality Unequality StrictLessThan LessThan StrictGreaterThan GreaterThan "
    "And Or Not ITE".split()
)
_ASSUMPTIONS = frozenset(
    "positive negative nonpositive nonnegative nonzero zero integer real finite commutative even odd "
    "rational extended_real extended_positive extended_nonnegative extended_nonzero".split()
)
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod)
_COMPARISONS = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)


def checked_expression(text: str) -> str:
    """The same expression, written anew from its syntax tree: numbers, symbols and functions of sizes only.

    Example: `"Mul(Integer(2), Symbol('s77', positive=True, integer=True))"`.

    Raises:
        UnsafeFileError: anything else in it.
    """
    if len(text) > MAX_LENGTH:
        raise UnsafeFileError(f"symbolic size: expected at most {MAX_LENGTH} characters, got {len(text)}")
    try:
        tree = ast.parse(text, mode="eval")
        _check(tree.body, in_power=False)
        return ast.unparse(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UnsafeFileError(f"symbolic size: expected arithmetic on sizes, got {text[:60]!r}") from error


def _refuse(node: ast.AST) -> UnsafeFileError:
    return UnsafeFileError(f"symbolic size: expected arithmetic on sizes, got {ast.unparse(node)[:60]!r}")


def _check(node: ast.expr, in_power: bool) -> None:
    if isinstance(node, ast.Call):
        _check_call(node, in_power)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        _check_power(node, node.left, node.right, in_power)
    elif _is_atom(node):
        return
    else:
        for part in _parts(node):
            _check(part, in_power)


def _is_atom(node: ast.expr) -> bool:
    """Whether it is a symbol, true or false, or a number."""
    if isinstance(node, ast.Name):
        return bool(SYMBOL.fullmatch(node.id)) or node.id in ("true", "false")
    return _integer(node) is not None or (isinstance(node, ast.Constant) and isinstance(node.value, (bool, float)))


def _parts(node: ast.expr) -> list[ast.expr]:
    """What an operator or a comparison of sizes takes; anything else is refused."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, _OPERATORS):
        return [node.left, node.right]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return [node.operand]
    if isinstance(node, ast.Compare) and all(isinstance(op, _COMPARISONS) for op in node.ops):
        return [node.left, *node.comparators]
    raise _refuse(node)


def _check_call(node: ast.Call, in_power: bool) -> None:
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    if name == "Symbol":
        _check_symbol(node)
    elif name == "Float":
        _check_float(node)
    elif node.keywords:
        raise _refuse(node)
    elif name == "Integer" and [_integer(argument) is not None for argument in node.args] == [True]:
        return
    elif name in _POWERS and len(node.args) == 2:
        _check_power(node, node.args[0], node.args[1], in_power)
    elif name in _FUNCTIONS:
        for argument in node.args:
            _check(argument, in_power)
    else:
        raise _refuse(node)


def _check_power(node: ast.expr, base: ast.expr, exponent: ast.expr, in_power: bool) -> None:
    """Towers of powers would fill the memory with one number: no power of a power, small exponents only."""
    if isinstance(exponent, ast.Call) and isinstance(exponent.func, ast.Name) and exponent.func.id == "Integer":
        exponent = exponent.args[0] if len(exponent.args) == 1 else exponent
    value = _integer(exponent)
    if in_power or value is None or abs(value) > MAX_EXPONENT:
        raise _refuse(node)
    _check(base, in_power=True)


def _check_symbol(node: ast.Call) -> None:
    name = node.args[0] if len(node.args) == 1 else None
    if not (isinstance(name, ast.Constant) and isinstance(name.value, str) and SYMBOL.fullmatch(name.value)):
        raise _refuse(node)
    for keyword in node.keywords:
        if keyword.arg not in _ASSUMPTIONS or not (
            isinstance(keyword.value, ast.Constant) and isinstance(keyword.value.value, bool)
        ):
            raise _refuse(node)


def _check_float(node: ast.Call) -> None:
    value = node.args[0] if len(node.args) == 1 else None
    if not (isinstance(value, ast.Constant) and isinstance(value.value, str) and _NUMBER.fullmatch(value.value)):
        raise _refuse(node)
    for keyword in node.keywords:
        precision = _integer(keyword.value)
        if keyword.arg != "precision" or precision is None or not 1 <= precision <= 256:
            raise _refuse(node)


def _integer(node: ast.expr) -> int | None:
    """The value of an integer literal of at most 63 bits, or None."""
    sign = 1
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node, sign = node.operand, -1
    if not (isinstance(node, ast.Constant) and type(node.value) is int and node.value < 2**63):
        return None
    return sign * node.value
