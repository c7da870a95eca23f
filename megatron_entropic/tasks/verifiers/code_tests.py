"""Tests of programs as data sets write them, read into one form; and whether a case's result is the one wanted.

{"inputs": ["1 2\\n"], "outputs": ["3\\n"]}                         what a program reads and prints (PRIME, Eurus, TACO, APPS, verl)
{"inputs": ["[1]\\n2"], "outputs": ["3"], "fn_name": "add"}         calls: an argument a line, in JSON; or lists of arguments
[{"input": "1 2", "output": "3", "testtype": "stdin"}, ...]        LiveCodeBench; "functional" needs metadata.func_name
["assert add(1, 2) == 3", ...], or Python with assert in it       MBPP; with `entry_point`, check(candidate): HumanEval
"""

import ast
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from megatron_entropic.tasks.row_values import BadRowError
from megatron_entropic.tasks.sandbox import CaseResult, SandboxCase
from megatron_entropic.tasks.sandbox.inside.values import from_text

_MOST_TESTS = 1000


@dataclass(frozen=True)
class CodeTest:
    """One test, in JSON's types. `wanted`: the output's text, or JSON of the value; "" for statements, which judge themselves."""

    kind: str
    given: str
    wanted: str = ""
    function: str = ""

    def case(self) -> SandboxCase:
        """What the sandbox is asked."""
        if self.kind == "program":
            return SandboxCase("program", input=self.given)
        if self.kind == "call":
            return SandboxCase("call", function=self.function, arguments=tuple(json.loads(self.given)))
        return SandboxCase("expression" if self.kind == "expression" else "statements", code=self.given)

    def passed(self, result: CaseResult, tolerance: float) -> bool:
        """Whether a result is the wanted one. Values are compared here, not where the program could say what is equal."""
        if not result.well:
            return False
        if self.kind == "program":
            return same_output(result.output, self.wanted, tolerance)
        try:
            value = from_text(result.value)
        except ValueError:
            return False
        if self.kind == "statements":
            return value is True
        if self.kind == "expression":
            return _same_value(value, ast.literal_eval(self.wanted), tolerance, loose=False)
        wanted = json.loads(self.wanted)
        return _same_value(value, wanted, tolerance, loose=True) or (
            self.function != ""
            and isinstance(wanted, list)
            and len(wanted) == 1
            and _same_value(value, wanted[0], tolerance, loose=True)
        )


def read_tests(text: str, row: Mapping[str, Any]) -> list[CodeTest]:
    """The tests in the text of the answer's field, or of what is named there. Raises BadRowError."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if isinstance(found, Mapping):
        tests = _pairs(found)
    elif isinstance(found, list) and found and all(isinstance(each, Mapping) for each in found):
        tests = _listed(found, row)
    elif isinstance(found, list) and found and all(isinstance(each, str) for each in found):
        tests = [test for each in found for test in _asserts(each, row)]
    else:
        tests = _asserts(text, row)
    if len(tests) > _MOST_TESTS:
        raise BadRowError(f"{len(tests)} tests; at most {_MOST_TESTS} are run")
    return tests


def to_answer(tests: list[CodeTest]) -> str:
    """The known answer of a row: the tests as JSON."""
    return json.dumps([{name: value for name, value in asdict(test).items() if value} for test in tests])


def of_answer(answer: str) -> list[CodeTest]:
    """What `to_answer` wrote."""
    return [CodeTest(**{"given": "", **test}) for test in json.loads(answer)]


def _pairs(found: Mapping[str, Any]) -> list[CodeTest]:
    if isinstance(found.get("assert_case"), list) and "inputs" not in found:
        return [test for each in found["assert_case"] for test in _asserts(str(each), {})]
    inputs, outputs, function = found.get("inputs"), found.get("outputs"), found.get("fn_name") or ""
    if not isinstance(inputs, list) or not isinstance(outputs, list) or not inputs or len(inputs) != len(outputs):
        raise BadRowError("the tests have no lists inputs and outputs of one length, 1 at least")
    if not isinstance(function, str):
        raise BadRowError("the tests' fn_name is no text")
    if function:
        return [_call(function, given, wanted) for given, wanted in zip(inputs, outputs, strict=True)]
    return [CodeTest("program", _as_text(given), _as_text(wanted)) for given, wanted in zip(inputs, outputs, strict=True)]


def _listed(found: list[Any], row: Mapping[str, Any]) -> list[CodeTest]:
    """LiveCodeBench's."""
    tests = []
    for each in found:
        if "input" not in each or "output" not in each:
            raise BadRowError("a test has no input and output")
        if each.get("testtype", "stdin") == "stdin":
            tests.append(CodeTest("program", _as_text(each["input"]), _as_text(each["output"])))
            continue
        metadata = row.get("metadata")
        metadata = json.loads(metadata) if isinstance(metadata, str) else metadata
        function = metadata.get("func_name") if isinstance(metadata, Mapping) else None
        if not isinstance(function, str):
            raise BadRowError("a functional test needs the field metadata with func_name")
        tests.append(_call(function, each["input"], each["output"]))
    return tests


def _call(function: str, given: Any, wanted: Any) -> CodeTest:
    try:
        arguments = [json.loads(line) for line in given.splitlines() if line.strip()] if isinstance(given, str) else given
        wanted = json.loads(wanted) if isinstance(wanted, str) and isinstance(given, str) else wanted
    except ValueError as error:
        raise BadRowError(f"a test of {function} is not JSON: {error}") from None
    if not isinstance(arguments, list):
        raise BadRowError(f"a test of {function} has no list of arguments")
    return CodeTest("call", json.dumps(arguments), json.dumps(wanted), function)


def _as_text(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    if not isinstance(value, str):
        raise BadRowError(f"a test's input or output is {type(value).__name__}, not text")
    return value


def _asserts(source: str, row: Mapping[str, Any]) -> list[CodeTest]:
    """Python with assertions: those that compare with a literal become values that are compared outside, else all is one test."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise BadRowError(f"the tests are neither JSON nor Python: {error}") from None
    if tree.body and all(isinstance(each, ast.Assert) for each in tree.body):
        tests = [_comparison(each) for each in tree.body if isinstance(each, ast.Assert)]
        if all(tests):
            return [test for test in tests if test]
    entry_point = row.get("entry_point")
    checks = any(isinstance(each, ast.FunctionDef) and each.name == "check" for each in tree.body)
    if checks and isinstance(entry_point, str) and entry_point.isidentifier():
        source += f"\ncheck({entry_point})\n"
    elif not any(isinstance(each, ast.Assert) for each in ast.walk(tree)) or checks:
        needs = "a field entry_point for check(candidate)" if checks else "an assert"
        raise BadRowError(f"the tests are neither pairs of inputs and outputs nor Python with {needs}")
    return [CodeTest("statements", source)]


def _comparison(test: ast.Assert) -> CodeTest | None:
    """`assert EXPRESSION == LITERAL` as an expression and the value that is wanted; None for others."""
    if not (isinstance(test.test, ast.Compare) and len(test.test.ops) == 1 and isinstance(test.test.ops[0], ast.Eq | ast.Is)):
        return None
    sides = test.test.left, test.test.comparators[0]
    for given, wanted in (sides, sides[::-1]):
        try:
            value = ast.literal_eval(wanted)
        except ValueError:
            continue
        if any(isinstance(each, ast.Call) for each in ast.walk(given)):
            return CodeTest("expression", ast.unparse(given), repr(value))
    return None


def same_output(given: str, wanted: str, tolerance: float) -> bool:
    """Whether two outputs are the same, line by line, but for white space at the ends of lines and the way numbers are written."""
    ours, theirs = (text.strip().splitlines() for text in (given, wanted))
    if len(ours) != len(theirs):
        return False
    return all(_same_line(one.strip(), other.strip(), tolerance) for one, other in zip(ours, theirs, strict=True))


def _same_line(given: str, wanted: str, tolerance: float) -> bool:
    if given == wanted:
        return True
    ours, theirs = given.split(), wanted.split()
    return len(ours) == len(theirs) and all(
        one == other or _same_number(one, other, tolerance) for one, other in zip(ours, theirs, strict=True)
    )


def _same_number(given: str, wanted: str, tolerance: float) -> bool:
    if max(len(given), len(wanted)) > 400:
        return False
    try:
        ours, theirs = Decimal(given), Decimal(wanted)
        if not ours.is_finite() or not theirs.is_finite():
            return False
        return ours == theirs or (tolerance > 0 and abs(float(ours) - float(theirs)) <= tolerance * max(1.0, abs(float(theirs))))
    except (InvalidOperation, OverflowError):
        return False


def _same_value(given: Any, wanted: Any, tolerance: float, *, loose: bool) -> bool:
    """Equality of plain values; `loose`, as JSON has it: a tuple is a list, and keys are texts."""
    if isinstance(given, list | tuple) and isinstance(wanted, list | tuple):
        same_kind = loose or type(given) is type(wanted)
        return (
            same_kind
            and len(given) == len(wanted)
            and all(_same_value(one, other, tolerance, loose=loose) for one, other in zip(given, wanted, strict=True))
        )
    if isinstance(given, dict) and isinstance(wanted, dict):
        given = {str(key): value for key, value in given.items()} if loose else given
        return given.keys() == wanted.keys() and all(_same_value(given[key], wanted[key], tolerance, loose=loose) for key in wanted)
    if isinstance(given, float | int) and isinstance(wanted, float | int) and tolerance > 0:
        return bool(abs(given - wanted) <= tolerance * max(1.0, abs(wanted)))
    return bool(given == wanted)
