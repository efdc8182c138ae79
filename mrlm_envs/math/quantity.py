r"""Reading one number, with its unit, exactly: `1 1/2`, `\frac{3}{4}`, `−1,234.50`, `1.5 \times 10^3`, `ten euros`.

`clean` removes the typography from an answer, `quantity` reads the result as a `Fraction` with a unit, and `agree`
compares two quantities. Numbers are never floats: 0.3333333333 is not 1/3.
"""

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from mrlm_envs.tasks import packaged

MAX_LENGTH = 200  # characters; a longer text is not read as a number
_MAX_BITS = 4_000  # most bits of an evaluated power; a longer one is not read as a number


class Quantity(NamedTuple):
    """An exact number with a unit.

    Attributes:
        value: The number as written (50 for "50%").
        dimension: What the unit measures: "length", "usd/time", "%", "?duck egg" (an unknown unit), "" (no unit).
        factor: Size of the unit in its dimension (1/100 for cm).
        is_open: Whether an operation is left to do (see `verify`): the text is a fraction that equals an integer
            (`36/2`), or a power of a number other than ten (`2^{10}`).
    """

    value: Fraction
    dimension: str = ""
    factor: Fraction = Fraction(1)
    is_open: bool = False


# Typography ----------------------------------------------------------------------------------------------------------

TABLES = packaged(__file__, "quantity.yaml")
_CHARACTERS = {c: chr(c - 0xFEE0) for c in range(0xFF01, 0xFF5F)}  # full-width ASCII
_CHARACTERS |= {ord(c): plain for plain, characters in TABLES["look_alikes"].items() for c in characters}
_CHARACTERS |= {ord(pair[0]): f" {pair[1:]}" for pair in TABLES["fractions"].split()}
_CHARACTERS |= {ord(pair[0]): rf"\{pair[1:]} " for pair in TABLES["commands"].split()}
_RAISED = {ord(c): plain for c, plain in zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")}
_LOWERED = {ord(c): str(i) for i, c in enumerate("₀₁₂₃₄₅₆₇₈₉")}
_SUPERSCRIPT = re.compile("⁻?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_SUBSCRIPT = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_SPECIAL = re.compile(r"[\\<>!]|infinity|\boo\b")

_DOUBLED = re.compile(r"(?<!\\)\\\\(?=(?:left|right|[dt]?frac|sqrt|text|pi|infty|cup|cdot|times|pm)(?![A-Za-z]))")
_THOUSANDS = re.compile(r",\s?\\!\s?(?=\d{3}(?!\d))|\s?\{\s?,\s?\}\s?")
_NOISE = re.compile(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits)(?![A-Za-z])|(?<!\\)\\!|\{\}")
_SPACES = re.compile(r"(?<!\\)\\[,;:>]|(?<!\\)\\ |(?<!\\)~|\\q?quad(?![A-Za-z])")
_TEXT = re.compile(r"\\(?:text|textnormal|textbf|textrm|textsf|textit|mathrm|mathbf|mathit|mbox|rm|bf)\s*\{([^{}]*)\}")
_WORD = re.compile(r"\\(?:text|textnormal|textrm|mathrm|mbox)\s?\{ ?([a-z]{2,3}) ?\}")
_FRAC = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_SHORT_FRAC = re.compile(r"\\frac\s*(?:(\d)|\{([^{}]*)\})\s*(?:(\d)|\{([^{}]*)\})")
_SPELLINGS = [(re.compile(pattern), put) for pattern, put in TABLES["spellings"]]
_DELIMITERS = [("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`")]


def clean(text: str) -> str:
    """Remove typography: Unicode look-alikes, math delimiters, LaTeX's sizing, spacing and text commands, bold."""
    text = " ".join(text.split())  # first, so that no pattern below meets a long run of white space
    if not text.isascii():
        text = _SUPERSCRIPT.sub(lambda m: "^{" + m[0].translate(_RAISED) + "}", text)
        text = _SUBSCRIPT.sub(lambda m: "_{" + m[0].translate(_LOWERED) + "}", text)
        text = text.translate(_CHARACTERS)
    for _ in range(4):
        before = text
        text = text.strip().rstrip(".,;:").rstrip()
        for opening, closing in _DELIMITERS:
            if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening) + len(closing):
                inner = text[len(opening) : -len(closing)]
                if opening[-1] not in inner.replace("\\$", "") or opening[0] == "\\":
                    text = inner
        if text.startswith((r"\boxed{", r"\fbox{")) and text.endswith("}"):
            text = text[text.index("{") + 1 : -1]
        if text.startswith("{") and text.find("}") == len(text) - 1 and "{" not in text[1:]:
            text = text[1:-1]
        if text == before:
            break
    if "$" in text and text.replace("\\$", "").count("$") % 2 == 0:  # delimiters that come in pairs, not dollars
        text = " ".join(text.replace("\\$", "\0").replace("$", " ").replace("\0", "\\$").split())
    if "\\" in text or "{" in text:
        text = _THOUSANDS.sub(",", _DOUBLED.sub(r"\\", text))
        text = _SPACES.sub(" ", _NOISE.sub("", text))
        if (word := _WORD.fullmatch(text)) is not None:  # so that `\\text{cat}` is not the product of three letters
            return rf"\mathrm{{{word[1]}}}"
        text = _TEXT.sub(r" \1 ", text)
        text = _FRAC.sub(r"\\frac", text)
        text = _SHORT_FRAC.sub(_brace_frac, text)
    if _SPECIAL.search(text):
        for pattern, put in _SPELLINGS:
            text = pattern.sub(put, text)
    return " ".join(text.replace("**", "^").split()).rstrip(".,;: ")


def _brace_frac(match: re.Match[str]) -> str:
    top, bottom = match[1] or match[2] or "", match[3] or match[4] or ""
    return rf"\frac{{{top.strip()}}}{{{bottom.strip()}}}"


# Units ---------------------------------------------------------------------------------------------------------------

_UNITS: dict[str, tuple[str, Fraction]] = {
    name: (dimension, Fraction(size))
    for dimension, sizes in TABLES["units"].items()
    for size, names in sizes.items()
    for name in names.split()
}
_NUMBER_WORDS = {word: i for i, word in enumerate(TABLES["numbers"].split())}
_NUMBER_WORDS |= {word: 10 * i for i, word in enumerate(TABLES["tens"].split(), start=2)}
_SCALES = {word: Fraction(factor) for word, factor in TABLES["scales"].items()}
_NOT_UNITS = frozenset(TABLES["no_units"].split()) | _NUMBER_WORDS.keys() | _SCALES.keys()
_UNIT_PART = re.compile(
    r"(?:(square|sq|cubic|cu)\.?\s+)?([^\d^]+?)(?:\s*\^\s*\{?([23])\}?|\s+(squared|cubed))?", re.IGNORECASE
)
_POWERS = {"square": 2, "sq": 2, "squared": 2, "2": 2, "cubic": 3, "cu": 3, "cubed": 3, "3": 3}


@lru_cache(maxsize=4096)
def unit(text: str) -> tuple[str, Fraction] | None:
    """Dimension and size of a unit such as "cm^2", "miles per hour" or "duck eggs"; None if the text is not a unit.

    Unknown words count as units ("eggs"), except words that join two numbers ("or", "plus").
    """
    parts = re.split(r"\s*/\s*|\bper\s+", text)
    if len(parts) > 2:
        return None
    dimension, factor = "", Fraction(1)
    for i, part in enumerate(parts):
        match = _UNIT_PART.fullmatch(part.strip())
        if match is None:
            if i == 0 and len(parts) == 2 and not part.strip():
                continue
            return None
        known = _named_unit(match[2].strip())
        if known is None:
            return None
        power = _POWERS.get((match[1] or match[3] or match[4] or "").lower(), 1)
        name = known[0] if power == 1 else f"{known[0]}^{power}"
        dimension += f"/{name}" if i else name
        factor = factor / known[1] ** power if i else factor * known[1] ** power
    return dimension, factor


def _named_unit(name: str) -> tuple[str, Fraction] | None:
    name = name.rstrip(".")
    for spelling in (name, name.lower(), name.lower().removesuffix("s")):
        if spelling in _UNITS:
            return _UNITS[spelling]
    words = name.lower().split()
    if not words or len(words) > 4 or not all(re.fullmatch(r"[a-z][a-z'.-]*", word) for word in words):
        return None
    if len(name) == 1 or any(word in _NOT_UNITS or word.removesuffix("s") in _NOT_UNITS for word in words):
        return None
    return "?" + " ".join(word.removesuffix("s") for word in words), Fraction(1)


# Numbers -------------------------------------------------------------------------------------------------------------

_N = r"(?:[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?|\d{1,3}(?:\ \d{3})+(?:\.\d+)?(?!\d)|\d+(?:\.\d*)?|\.\d+)"
_QUANTITY = re.compile(
    rf"""(?P<sign>[+-]|negative\ |minus\ )?\s*
    (?P<money>(?:us)?\$|[€£¥₹]|rs\.?|usd|eur|gbp|inr|jpy)?\s*(?P<sign2>[+-])?\s*
    (?: (?P<whole>\d+)\s*(?:\s|\\frac\{{)\s*(?P<top>\d+)\s*(?:/|\}}\{{)\s*(?P<bottom>\d+)\s*\}}?
      | \\frac\{{\s*(?P<num>[+-]?{_N})\s*\}}\{{\s*(?P<den>[+-]?{_N})\s*\}}
      | (?P<num2>{_N})\s*/\s*(?P<den2>[+-]?{_N})
      | (?P<mantissa>{_N})(?:e(?P<e>[+-]?\d{{1,3}})|\s*(?:\*|\\cdot|x)\s*10\s*\^\s*
          (?:(?P<e2>[+-]?\d{{1,3}})|\{{\s*(?P<e3>[+-]?\d{{1,3}})\s*\}}))
      | (?P<base>\d+)\s*\^\s*(?:(?P<p>[+-]?\d{{1,4}})|\{{\s*(?P<p2>[+-]?\d{{1,4}})\s*\}})
      | (?P<fixed>\d*\.\d*)(?:\\(?:overline|bar|dot)\s*\{{?(?P<repeat>\d+)\}}?|\((?P<repeat2>\d+)\))
      | (?P<plain>{_N}) )
    (?P<scale>(?:\s*(?:{"|".join(_SCALES)})s?\b){{0,2}})
    (?P<gap>\s*)(?P<unit>[A-Za-z%°$€£¥₹¢/][^\d=<>,;()\\]*(?:\^\s*\{{?[23]\}}?)?)?""",
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
_BESIDE_ZERO = re.compile(r"(.+) (below|above) (?:zero|0)")
_COMPOUND = re.compile(r"(?<=[A-Za-z°'])\s?,?\s(?:and\s)?(?=\d)|(?<=[a-z])(?=\d)")
_ASIDE = re.compile(r"(?<=\d) \(([A-Za-z ]+)\)")  # 18 (apples)
_MONEY = {"$": "usd", "us$": "usd", "€": "eur", "£": "gbp", "¥": "jpy", "₹": "inr", "rs": "inr", "rs.": "inr"}


@lru_cache(maxsize=8192)
def quantity(text: str, attached: bool = True) -> Quantity | None:
    """Read a cleaned text as one exact number with an optional unit; None if it is anything else.

    Args:
        text: What `clean` returned.
        attached: Whether a one-letter unit may touch its number. An agent's `18m` is 18 metres; in a reference
            answer it is 18 times m.
    """
    if len(text) > MAX_LENGTH:
        return None
    if text[:1].isalpha():
        text = _in_digits(text)
    text = _ASIDE.sub(r" \1", text)
    if not any("0" <= c <= "9" for c in text):
        return None
    if (beside := _BESIDE_ZERO.fullmatch(text)) is not None:  # 7 degrees below zero
        found = quantity(beside[1], attached)
        return found and found._replace(value=found.value * (-1 if beside[2] == "below" else 1))
    match = _QUANTITY.fullmatch(text)
    if match is None:
        return _compound(text)
    value = _value(match)
    if value is None:
        return None
    if (match["sign"] or "+") != "+":
        value = -value
    if match["sign2"] == "-":
        value = -value
    for scale in match["scale"].lower().split():
        value *= _SCALES.get(scale) or _SCALES[scale.removesuffix("s")]
    dimension, factor = "", Fraction(1)
    if match["unit"]:
        if len(match["unit"].strip()) == 1 and match["unit"].isalpha() and not (match["gap"] or attached):
            return None
        known = unit(match["unit"].strip())
        if known is None:
            return None
        dimension, factor = known
    if match["money"]:
        money = _MONEY.get(match["money"].lower(), match["money"].lower())
        if dimension.startswith("/"):
            dimension = money + dimension
        elif dimension.startswith("?") or not dimension:
            dimension = money
        elif dimension != money:
            return None
    is_fraction = (match["num"] or match["num2"]) is not None
    is_open = (is_fraction and value.denominator == 1) or match["base"] not in (None, "10")
    return Quantity(value, dimension, factor, is_open)


def _in_digits(text: str) -> str:
    """`twenty-one eggs` as `21 eggs`; a text that does not begin with a number word is returned unchanged."""
    words = text.lower().replace("-", " ").split()
    sign = "-" if words[0] in ("minus", "negative") else ""
    words = words[len(sign) :]
    total = part = used = 0
    for word in words:
        number = _NUMBER_WORDS.get(word)
        if number is not None and part % (10 if number < 10 and part % 100 > 10 else 100) == 0:
            part += number
        elif word == "hundred" and 0 < part < 10:
            part *= 100
        elif word in ("thousand", "million", "billion") and part:
            total, part = total + part * int(_SCALES[word]), 0
        elif word != "and" or not used or words[used - 1] not in ("hundred", "thousand"):
            break
        used += 1
    if not used or words[used - 1] == "and":
        return text
    rest = " ".join(words[used:]).replace("quarter", "fourth")
    return f"{sign}{total + part} {rest}".rstrip()


def _compound(text: str) -> Quantity | None:
    """Read `2 hours 30 minutes` or `5 dollars and 40 cents`: numbers in ever smaller units of one dimension."""
    texts = _COMPOUND.split(text)
    if not 2 <= len(texts) <= 3:
        return None
    first, *parts = [quantity(part) for part in texts]
    if first is None or not first.dimension or first.dimension.startswith("?"):
        return None
    total, below = first.value * first.factor, first.factor
    for part in parts:
        if part is None or part.dimension != first.dimension or not 0 <= part.value * part.factor < below:
            return None
        total, below = total + part.value * part.factor * (-1 if first.value < 0 else 1), part.factor
    return Quantity(total / first.factor, first.dimension, first.factor)


def _value(match: re.Match[str]) -> Fraction | None:
    if match["plain"]:
        return _decimal(match["plain"])
    if match["fixed"]:  # 0.1\overline{6}
        repeat, digits = match["repeat"] or match["repeat2"], match["fixed"].partition(".")[2]
        return _decimal(match["fixed"]) + Fraction(int(repeat), (10 ** len(repeat) - 1) * 10 ** len(digits))
    if match["whole"]:
        top, bottom = int(match["top"]), int(match["bottom"])
        return int(match["whole"]) + Fraction(top, bottom) if 0 < top < bottom else None
    if match["mantissa"]:
        return _decimal(match["mantissa"]) * Fraction(10) ** int(match["e"] or match["e2"] or match["e3"])
    if match["base"]:
        base, power = int(match["base"]), int(match["p"] or match["p2"])
        if base.bit_length() * abs(power) > _MAX_BITS or (base == 0 and power <= 0):
            return None
        return Fraction(base) ** power
    top, bottom = _decimal(match["num"] or match["num2"]), _decimal(match["den"] or match["den2"])
    return top / bottom if bottom else None


def _decimal(text: str) -> Fraction:
    return Fraction(text.replace(",", "").replace(" ", "").removesuffix(".") or 0)


def agree(answer: Quantity, gold: Quantity) -> bool:
    """Whether two quantities are equal.

    - A missing unit matches any unit: `18` equals `18 dollars`. Two units must agree: `10 m` does not equal `10 cm`,
      but it equals `1000 cm`.
    - `50%` equals `0.5`, `1/2` and also `50`, which answers "how many percent". A bare number below 1 is never read as
      a percentage: `0.5%` does not equal `0.5`.
    - An answer that leaves an operation to do is wrong: `30/6` does not equal `5`, nor `2^{10}` `1024`.
    """
    if answer.is_open and not gold.is_open:
        return False
    a, b = answer.dimension, gold.dimension
    if a == b:
        return answer.value * answer.factor == gold.value * gold.factor
    if "%" in (a, b):
        percent, other = (answer, gold) if a == "%" else (gold, answer)
        if other.dimension:
            return False
        return other.value * 100 == percent.value or (other.value == percent.value and abs(other.value) >= 1)
    if not a or not b:
        return answer.value == gold.value
    if a[0] == b[0] == "?":
        mine, theirs = set(a[1:].split()), set(b[1:].split())
        return (mine <= theirs or theirs <= mine) and answer.value == gold.value
    return False
