"""Whether an answer means the known one: what people and models write is read, and nothing else is right."""

import json
import math
import random
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from megatron_entropic.tasks import Problem
from megatron_entropic.tasks.math_answers import boxed, unreadable
from megatron_entropic.tasks.math_answers.compare import same
from megatron_entropic.tasks.math_answers.numbers import TooLargeError, approximates, rational
from megatron_entropic.tasks.math_answers.plain import plain
from megatron_entropic.tasks.verification import Limits, VerifierSpec, VerifierWorker

DATA = Path(__file__).with_name("data")
FORMS = [line.split("\t") for line in (DATA / "math_forms.tsv").read_text(encoding="utf-8").splitlines()]
CASES = [json.loads(line) for line in (DATA / "math_cases.jsonl").read_text(encoding="utf-8").splitlines()]
WORDS = st.text(st.sampled_from("abcdenorstuxyz"), min_size=2, max_size=8)
RATIONALS = st.fractions(max_denominator=10**6) | st.integers(-(10**30), 10**30).map(Fraction)


@pytest.fixture(scope="module")
def verifier() -> Iterator[VerifierWorker]:
    pytest.importorskip("math_verify")
    worker = VerifierWorker(VerifierSpec("megatron_entropic.tasks.math_answers:make_math_verifier", {}, 0), Limits(cpu_s=0.7))
    worker.start()
    yield worker
    worker.close()


def test_each_recorded_response_is_scored_as_it_should_be(verifier: VerifierWorker) -> None:
    wrong = [
        (case, verdict)
        for case in CASES
        if (verdict := verifier.judge(Problem("?", {"answer": case["answer"]}), case["response"])).score != case["expected"]
        or verdict.outcome == "failed"
    ]
    assert not wrong
    assert len(CASES) == 210


@pytest.mark.parametrize("verdict", ["same", "other"])
def test_forms_of_answers(verdict: str) -> None:
    pytest.importorskip("math_verify")
    wrong = [(gold, answer) for expected, gold, answer in FORMS if expected == verdict and same(gold, answer) != (verdict == "same")]
    assert not wrong


def test_what_cannot_be_read_is_the_same_for_both() -> None:
    """Every known answer that can be read equals itself, whatever it is."""
    for gold in {gold for _, gold, _ in FORMS}:
        assert unreadable(gold) is None, gold
        assert same(gold, gold), gold


@pytest.mark.parametrize("gold", ["$", "-", "{}", "{5", "}", "()", "", "  ", "\\", "\\boxed{}", ".", "####", "x" * 1001])
def test_known_answers_that_say_nothing(gold: str) -> None:
    assert unreadable(gold)
    assert not same(gold, "5") or len(gold) > 1000


@given(WORDS, st.randoms())
def test_letters_in_another_order_are_another_word(word: str, shuffle: random.Random) -> None:
    letters = list(word)
    shuffle.shuffle(letters)
    other = "".join(letters)
    for gold in (word, word.upper(), rf"\text{{{word}}}", rf"\mathrm{{{word.upper()}}}"):
        for answer in (other, other.upper(), rf"\text{{{other}}}"):
            assert same(gold, answer) == (other == word)


def spellings(value: Fraction) -> list[str]:
    """Ways to write a rational number."""
    n, d = value.numerator, value.denominator
    found = [f"{n}/{d}", rf"\frac{{{n}}}{{{d}}}", rf"\dfrac{{{-n}}}{{{-d}}}", f"({n}) / {d}", rf"\text{{{n}/{d}}}", f"x = {n}/{d}"]
    if d == 1:
        found += [
            str(n),
            f"{n:,}",
            f"{n:,}".replace(",", r"\,"),
            f"{n:,}".replace(",", "{,}"),
            f"{n}.0",
            f"${n}$",
            f"{n} \\text{{ cm}}",
        ]
    if abs(value) > 1 and d > 1:
        whole, part = divmod(abs(n), d)
        found.append(rf"{'-' if n < 0 else ''}{whole}\frac{{{part}}}{{{d}}}")
    return found


@given(RATIONALS, RATIONALS, st.randoms())
@settings(max_examples=200)
def test_numbers_are_the_same_exactly_when_they_are_equal(first: Fraction, second: Fraction, choose: random.Random) -> None:
    assert same(choose.choice(spellings(first)), choose.choice(spellings(first)))
    assert same(choose.choice(spellings(first)), choose.choice(spellings(second))) == (first == second)


@given(st.integers(-400, 400), st.integers(1, 9999), st.integers(1, 9999))
@settings(max_examples=30)
def test_numbers_near_each_other_differ_at_any_scale(exponent: int, digits: int, others: int) -> None:
    assume(digits != others)
    for form in (r"1.%04d\cdot 10^{%d}", r"1.%04d \times 10^{%d}", "1.%04de%d", r"\frac{1%04d}{10^{%d}}"):
        assert not same(form % (digits, exponent), form % (others, exponent))
    near = rf"\sqrt{{2}}+{digits}\cdot10^{{-{abs(exponent) + 30}}}"
    assert not same(near, r"\sqrt{2}")


@given(st.lists(st.integers(-9, 9), min_size=2, max_size=5), st.randoms())
def test_tuples_keep_their_order_and_sets_do_not(items: list[int], shuffle: random.Random) -> None:
    other = list(items)
    shuffle.shuffle(other)
    inside, outside = (",".join(map(str, values)) for values in (items, other))
    assert same(f"({inside})", f"({outside})") == (items == other)
    assert same(rf"\{{{inside}\}}", rf"\{{{outside}\}}")
    assert same(inside, outside)
    assert not same(f"({inside})", rf"\{{{outside}\}}")
    assert not same(rf"\{{{inside}\}}", f"({outside})")
    assert not same(inside, f"{outside},10")
    assert not same(f"({inside})", f"({outside},10)")


@given(
    st.integers(-9, 9), st.integers(1, 9), st.sampled_from("(["), st.sampled_from(")]"), st.sampled_from("(["), st.sampled_from(")]")
)
def test_ends_of_intervals_count(low: int, length: int, left: str, right: str, other_left: str, other_right: str) -> None:
    gold, answer = f"{left}{low},{low + length}{right}", f"{other_left}{low},{low + length}{other_right}"
    assert same(gold, answer) == ((left, right) == (other_left, other_right))
    signs = {"(": "<", "[": r"\le", ")": "<", "]": r"\le"}
    inequality = f"{low} {signs[other_left]} x {signs[other_right]} {low + length}"
    assert same(inequality, gold) == ((left, right) == (other_left, other_right))


PIECES = (
    r"\frac{ } { \sqrt{ ^ _ 1 12 0.5 x \pi + - \cdot \left( \right) ( ) [ ] , = < \le \in \cup \infty \text{ % ^\circ ! \log \sin "
    r"\begin{pmatrix} \end{pmatrix} & \\ | : ; ' e i − ² ½ √"
)


@given(st.text(max_size=60) | st.lists(st.sampled_from([*PIECES.split(), " ", "\n"]), max_size=12).map("".join))
@settings(max_examples=200)
def test_any_text_gets_an_answer_and_none_is_right_by_chance(text: str) -> None:
    for gold in ("977", r"\frac{311}{977}", "(311,977)", "Paris", "C"):
        if same(gold, text):
            assert "977" in plain(text) or plain(text).casefold() in ("paris", "c", "(c)")
    assert boxed(text) is None or boxed(text)


@pytest.mark.parametrize(
    ("response", "inside"),
    [
        ("so \\boxed{4}", "4"),
        ("\\boxed{1} no, \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{7} as \\boxed{}", "7"),
        ("\\boxed{7} as \\boxed{ }", "7"),
        ("\\boxed{7} and \\boxed{8", "7"),
        ("\\boxed{\\boxed{7}}", "7"),
        ("\\boxed {7}", "7"),
        ("\\boxed 7", "7"),
        ("\\boxed 7.", "7."),
        ("$\\boxed 42$", "42"),
        ("\\fbox{7}", "7"),
        ("\\boxed{\\{1,2\\}}", "\\{1,2\\}"),
        ("\\boxed{\\left\\{1\\right.}", "\\left\\{1\\right."),
        ("\\boxed{\n7\n}", "7"),
        ("\\boxedfoo{7}", None),
        ("\\boxed{}", None),
        ("\\boxed{4", None),
        ("\\boxed", None),
        ("4", None),
        ("", None),
    ],
)
def test_the_last_box_that_holds_something(response: str, inside: str | None) -> None:
    assert boxed(response) == inside


def test_boxes_of_long_texts_are_found_at_once() -> None:
    started = time.monotonic()
    assert boxed("\\boxed{" * 50_000) is None
    assert boxed("\\boxed{" + "{" * 200_000) is None
    assert boxed("\\boxed{1}" * 50_000) == "1"
    assert boxed("\\boxed{5} " + "\\boxed " * 50_000) == "5"
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234.5", Fraction(2469, 2)),
        ("1,23", None),
        (r"2\frac{1}{3}", Fraction(7, 3)),
        (r"2\frac{4}{3}", Fraction(8, 3)),
        ("-1 1/2", Fraction(-3, 2)),
        (r"0.1\overline{6}", Fraction(1, 6)),
        ("2^{-3}", Fraction(1, 8)),
        ("2^3^2", Fraction(512)),
        ("-3^2", Fraction(-9)),
        ("1/2/3", Fraction(1, 6)),
        (r"\binom{5}{2}", Fraction(10)),
        (r"\sqrt[3]{27}", Fraction(3)),
        (r"\sqrt{2}", None),
        ("1/0", None),
        ("0^{0}", None),
        ("5 6", None),
        ("5x", None),
        ("", None),
        ("(" * 500 + "1" + ")" * 500, None),
    ],
)
def test_exact_values(text: str, value: Fraction | None) -> None:
    assert rational(text) == value


@pytest.mark.parametrize(
    "text", ["9^{9^{9^{9}}}", "1e999999999", "1000000000!", "10^{10^{10}}", r"\frac{1}{2^{30^{5}}}", "5^{5^{5^{5}}}+x"]
)
def test_large_numbers_are_refused_at_once(text: str) -> None:
    started = time.process_time()
    with pytest.raises(TooLargeError):
        rational(text)
    assert not same("5", text)
    assert not same(text, "5")
    assert time.process_time() - started < 1


def test_a_decimal_stands_for_what_it_rounds_to() -> None:
    third = Fraction(1, 3)
    assert approximates("0.333333", third)
    assert not approximates("0.33333", third)
    assert not approximates("0.333334", third)
    assert approximates("3.141593", Fraction(math.pi))  # rounded
    assert approximates("3.141592", Fraction(math.pi))  # cut
    assert not approximates("3.141594", Fraction(math.pi))
