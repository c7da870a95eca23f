r"""One way of writing for what people and models write in many: unicode, spacing, decorations, synonyms of commands.

What comes out is LaTeX without anything that only changes the looks. Words keep their \text{...}. Nothing here changes a value.
"""

import re
import unicodedata

_CHARACTERS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": r"\cdot ", "·": r"\cdot ", "∙": r"\cdot ", "⋅": r"\cdot ", "÷": "/",
    "⁄": "/", "∕": "/", "∞": r"\infty ", "π": r"\pi ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "±": r"\pm ",
    "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "°": r"^\circ ", "…": r"\ldots ", "⋯": r"\ldots ",
    "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "λ": r"\lambda ", "ω": r"\omega ", "φ": r"\phi ",
    "。": ".", "、": ",", "∶": ":", "′": "'", "’": "'", "“": '"', "”": '"', "\u00a0": " ", "\u3000": " ", "\u200b": "", "\ufeff": "",
    "ℝ": r"\mathbb{R}", "→": r"\to ", "√": "√",
}  # fmt: skip
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
_SAME = [
    (r"\\[dtc]frac", r"\\frac"),
    (r"\\[dt]binom", r"\\binom"),
    (r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z])\s*\.?", ""),
    (r"\\(?:displaystyle|textstyle|scriptstyle|limits|rm|bf|it|tt|normalsize|large|Large|big)(?![A-Za-z])", ""),
    (r"\\(?:quad|qquad|thinspace|enspace|hfill|newline)(?![A-Za-z])|\\hspace\*?\{[^{}]*\}|~|&nbsp;", " "),
    (r"(?<=\d)\s*(?:\\[,!]|\{,\})\s*(?=\d{3}(?!\d))", "⸴"),
    (r"\{,\}", ","),
    (r"(?<!\\)\\!|\\checkmark(?![A-Za-z])|\\(?:text)?color\s*\{[^{}]*\}", ""),
    (r"(?<!\\)\\[,;:> ]", " "),
    (r"\\%", "%"),
    (r"\\(?:leqslant|leq)(?![A-Za-z])|<=", r"\\le "),
    (r"\\(?:geqslant|geq)(?![A-Za-z])|>=", r"\\ge "),
    (r"\\neq(?![A-Za-z])|!=", r"\\ne "),
    (r"\\lt(?![A-Za-z])", "<"),
    (r"\\gt(?![A-Za-z])", ">"),
    (r"\\(?:times|ast)(?![A-Za-z])|\*", r"\\cdot "),
    (r"\\div(?![A-Za-z])", "/"),
    (r"\\(?:varnothing)(?![A-Za-z])", r"\\emptyset "),
    (r"\\(?:infin)(?![A-Za-z])", r"\\infty "),
    (r"\\(?:simeq|thickapprox)(?![A-Za-z])", r"\\approx "),
    (r"\\(?:dots|cdots|dotsc|dotsb|hdots)(?![A-Za-z])|\.\.\.", r"\\ldots "),
    (r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ(?![A-Za-z])|\\degrees?(?![A-Za-z])", r"\\degree "),
    (r"\\colon(?![A-Za-z])", ":"),
    (r"\\l?brace(?![A-Za-z])", r"\\{"),
    (r"\\rbrace(?![A-Za-z])", r"\\}"),
    (r"\\(?:lbrack)(?![A-Za-z])", "["),
    (r"\\(?:rbrack)(?![A-Za-z])", "]"),
    (r"\\langle(?![A-Za-z])", "("),
    (r"\\rangle(?![A-Za-z])", ")"),
    (r"\\mid(?![A-Za-z])|\\vert(?![A-Za-z])", "|"),
    (r"\\(?:imath)(?![A-Za-z])", "i"),
    (r"(?<![A-Za-z\\])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"(?<![A-Za-z\\])(?:pi|Pi|PI)(?![A-Za-z])", r"\\pi "),
    (r"√\s*(\d+(?:\.\d+)?|[A-Za-z])", r"\\sqrt{\1}"),
    (r"√\s*\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"√\s*\{", r"\\sqrt{"),
    (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"\\sqrt\s+(?=[\d{[])", r"\\sqrt"),
    (r"\\sqrt\s*(\d)", r"\\sqrt{\1}"),
    (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
    (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
    (r"\\frac\s*(\{[^{}]*\})\s*(\d)", r"\\frac\1{\2}"),
    (r"\\frac\s*\\pi\s*(\d)", r"\\frac{\\pi}{\1}"),
    (r"(?<![A-Za-z\\])(sin|cos|tan|sec|csc|cot|log|ln|exp|arcsin|arccos|arctan)(?=\s*[({^_]|\s+[A-Za-z\d\\](?![A-Za-z]{2}))", r"\\\1"),
]  # fmt: skip
_SAME_COMPILED = [(re.compile(pattern), replacement) for pattern, replacement in _SAME]
_LOOKS = re.compile(
    r"\\(?:mathbf|boldsymbol|bm|underline|uline|mathit|mathsf|mathtt|mathnormal|boxed|fbox|framebox|pmb|bold|ensuremath)\s*\{([^{}]*)\}"
)
_WORDS = re.compile(r"\\(?:text|mathrm|textrm|textnormal|textbf|textit|textsf|texttt|emph|mbox|hbox|operatorname)\*?\s*\{([^{}]*)\}")
_WRAPPED_VALUE = re.compile(r"[A-Za-z]|[^A-Za-z]*")
_LEADING_WORDS = re.compile(
    r"(?:(?:so|thus|hence|therefore)[, ]+)?(?:the |my |our )?(?:final |correct )?(?:answer|result|value|solution|option|choice)"
    r"(?: is| are|:|=)?:?\s+(?=\S)",
    re.IGNORECASE,
)
_TRAILING = re.compile(r"(?:[\s.,;。]|\\\\|\\(?=$)|\\(?=\s+$))+$")


def plain(answer: str) -> str:
    """`answer` in the one way of writing; "" when nothing is left. Linear but for nested decorations."""
    text = _without_delimiters(_ascii(answer))
    for pattern, replacement in _SAME_COMPILED:
        text = pattern.sub(replacement, text)
    text = text.replace("⸴", "")
    while (shown := _WORDS.sub(_words, _LOOKS.sub(r"{\1}", text))) != text:
        text = shown
    text = " ".join(text.replace("\x00", r"\text{").replace("\x01", "}").split())
    previous = None
    while previous != text:
        previous = text
        text = _unwrapped(_TRAILING.sub("", text.strip()))
        text = _LEADING_WORDS.sub("", text, count=1) if _LEADING_WORDS.match(text) else text
    return text


def compact(text: str) -> str:
    """`plain` text without spaces, for comparing letter by letter."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)


def balanced(text: str) -> bool:
    """Whether every brace that counts has its partner."""
    depth = 0
    for brace in re.finditer(r"\\.|[{}]", text):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth < 0:
            return False
    return depth == 0


def _ascii(text: str) -> str:
    """Digits of every script, raised and lowered digits, fractions and signs of unicode in ASCII or LaTeX."""
    if text.isascii():
        return text
    text = re.sub(f"[{''.join(_SUPERSCRIPTS)}]+", lambda run: "^{" + "".join(map(_SUPERSCRIPTS.__getitem__, run[0])) + "}", text)
    text = re.sub(f"[{''.join(_SUBSCRIPTS)}]+", lambda run: "_{" + "".join(map(_SUBSCRIPTS.__getitem__, run[0])) + "}", text)
    return "".join(map(_ascii_character, text))


def _ascii_character(character: str) -> str:
    if character in _CHARACTERS:
        return _CHARACTERS[character]
    if unicodedata.category(character) == "Nd":
        return str(unicodedata.digit(character))
    if "\uff01" <= character <= "\uff5e":
        return unicodedata.normalize("NFKC", character)
    if unicodedata.category(character) == "No" and "⁄" in (both := unicodedata.normalize("NFKC", character)):
        above, _, below = both.partition("⁄")
        return rf"\frac{{{above}}}{{{below}}}" if below.isdigit() else character
    return character


def _without_delimiters(text: str) -> str:
    _, marked, after = text.rpartition("####")
    text = after if marked else text
    opened, closed = text.rfind("<answer>"), text.rfind("</answer>")
    if 0 <= opened < closed:
        text = text[opened + len("<answer>") : closed]
    text = text.replace("\\$", "").replace("$", "").strip()
    for begin, end in ((r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("__", "__"), ("`", "`"), ('"', '"')):
        if text.startswith(begin) and text.endswith(end) and len(text) >= len(begin) + len(end):
            text = text[len(begin) : len(text) - len(end)].strip()
    return text


def _words(wrapped: re.Match[str]) -> str:
    r"""\text{...} in which words stay words (marked by \x00 and \x01 until all are found), and values lose their wrapper."""
    inside = wrapped[1].strip()
    if inside.endswith((":", "=", " is")):
        inside = _LEADING_WORDS.sub("", f"{inside} .").removesuffix(".").strip()
    else:
        inside = _LEADING_WORDS.sub("", inside, count=1)
    if _WRAPPED_VALUE.fullmatch(inside) or re.fullmatch(r"\(?[A-Za-z]\)?[.:)]?", inside):
        return f" {inside} " if inside else " "
    return f"\x00{wrapped[1]}\x01"


def _unwrapped(text: str) -> str:
    """Without braces around the whole, or around a single letter or number within."""
    text = re.sub(r"(?<![A-Za-z\]}^_\d])\{\s*(-?[\w.]+)\s*\}(?!\s*\{)", r" \1 ", text).strip()
    if text.startswith("{") and text.endswith("}") and balanced(text[1:-1]) and len(text) >= 2:
        return text[1:-1].strip()
    words = re.fullmatch(r"\\text\{([^{}]*)\}", text)
    return words[1].strip() if words else text
