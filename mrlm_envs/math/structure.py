r"""The shape of an answer: lists, tuples, sets, intervals, matrices, equations and inequalities, as text.

All functions take text cleaned by `quantity.clean` and need linear time and no computer algebra.
"""

import re
from typing import NamedTuple

MAX_ITEMS = 64  # of a collection; a longer one is not taken apart

_OPENING, _CLOSING = "([{", ")]}"
_MATRIX = re.compile(r"\\begin\s*\{((?:small)?[pb]?matrix|array)\}(?:\s*\{[lcr| ]*\})?(.*)\\end\s*\{\1\}", re.DOTALL)
_ROW = re.compile(r"\\\\|\\cr(?![A-Za-z])")
_SYMBOL = re.compile(
    r"(?!\\(?:pi|infty|emptyset)(?![A-Za-z]))(?:\\angle\s*|m\s*\\angle\s*)?"
    r"(?:\\[A-Za-z]+|[A-Za-z]{1,3}|[A-Z]?[a-z]+(?:\s[a-z]+){0,2})"
    r"(?:\s*_\s*(?:\w|\{[\w\s,]*\}))?'*(?:\s*\([A-Za-z0-9,\s]*\))?"
)
_INDEX = re.compile(r"_(?:\w|\{\w+\})")
_MEASURE = re.compile(r"(?:[A-Z:|/{}() ]|\\(?:frac|overline|triangle|angle)(?![a-z]))+")
_POINT = re.compile(r"\([A-Za-z](?:\s*,\s*[A-Za-z]){1,3}\)")
_RELATION = re.compile(r"\\(?:le|ge|ne)(?![A-Za-z])|[<>=]")
_MEMBER = re.compile(r"([A-Za-z])\s*\\in\s+(.*)", re.DOTALL)
_BUILDER = re.compile(
    r"\\\{\s*([A-Za-z])\s*(?:\\in\s*\\mathbb\s*\{?\s*R\s*\}?)?\s*(?:\||:|\\mid)\s*(.*[^\s])\s*\\\}", re.DOTALL
)
_OR = re.compile(r",?\s+or\s+|\\(?:lor|vee)(?![A-Za-z])|\\cup(?![A-Za-z])")
_AND = re.compile(r",?\s+and\s+|,|;|\\(?:land|wedge)(?![A-Za-z])")
_SEPARATOR_WORD = re.compile(r"(?:^|(?<=[\s,;)\]}]))(?:and|or)(?=[\s(\[\\])")
_OUTWARD = re.compile(r"\](.+)[\[\]]|\[(?=.+\[$)(.+)\[")  # [1, 3[ and ]1, 3], the French way of writing (
_FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
_REALS = re.compile(r"\\(?:mathbb|R)\s*\{?\s*R?\s*\}?|\\Reals|all real numbers", re.IGNORECASE)


class Collection(NamedTuple):
    """Several values: `kind` is its brackets, "()", "[]", "(]", "[)", "{}", or "" when it has none."""

    kind: str
    items: list[str]

    def by_name(self) -> "Collection":
        """`y = 2, x = 1` as the tuple `(1, 2)`; unchanged unless every item names its own variable."""
        sides = [equation(item) for item in self.items]
        named = {pair[0]: pair[1] for pair in sides if pair is not None and len(pair) == 2 and is_symbol(pair[0])}
        if len(named) != len(self.items):
            return self
        return Collection("()", [named[name] for name in sorted(named)])


def is_symbol(text: str) -> bool:
    """Whether a text is a name: `x`, `x_1`, `f(x)`, `AB`, `total cost`, `(x, y)`."""
    text = text.strip()
    return len(text) <= 40 and (_SYMBOL.fullmatch(text) or _POINT.fullmatch(text)) is not None


def is_measure(text: str) -> bool:
    r"""Whether a text is made of the names of points only: `|AB|`, `A:B`, `S_{1}:S_{2}`, `\frac{NO}{BO}`."""
    return len(text) <= 40 and _MEASURE.fullmatch(_INDEX.sub("", text)) is not None


def split_top(text: str, separators: str) -> list[str]:
    """Split at the separators that stand outside of all brackets; items are stripped."""
    items, depth, start = [], 0, 0
    for i, character in enumerate(text):
        if character in _OPENING:
            depth += 1
        elif character in _CLOSING:
            depth -= 1
        elif depth == 0 and character in separators:
            items.append(text[start:i].strip())
            start = i + 1
    return [*items, text[start:].strip()]


def enclosed(text: str) -> tuple[str, str] | None:
    """Brackets around the whole text, as a `Collection` kind, and what is inside."""
    opening = r"\{" if text.startswith(r"\{") else text[:1]
    closing = r"\}" if text.endswith(r"\}") else text[-1:]
    kind = (opening + closing).replace("\\", "")
    if kind not in ("()", "[]", "(]", "[)", "{}") or (kind == "{}" and opening == "{"):
        return None
    depth = 0
    for i, character in enumerate(text):
        depth += (character in _OPENING) - (character in _CLOSING)
        if depth == 0 and i >= len(opening) - 1 and i < len(text) - 1:
            return None
    return (kind, text[len(opening) : len(text) - len(closing)].strip()) if depth == 0 else None


def collection(text: str) -> Collection | None:
    """The items of a list, tuple, set or interval; None for a single value."""
    around = enclosed(text)
    kind, inside = around or ("", text)
    if kind == "":
        inside = _SEPARATOR_WORD.sub(",", inside.replace("\\lor", " or ").removeprefix("either "))
    items = [item for item in split_top(inside, ",;") if item]
    if kind == "" and len(groups := split_top(inside, ";")) > 1 and len(groups) < len(items):
        items = [group for group in groups if group]  # p = 5, q = 2; p = 7, q = 2
    if len(items) > MAX_ITEMS or (len(items) < 2 and kind in ("", "()")):
        return None
    return Collection(kind, items)


def plus_minus(text: str) -> str:
    r"""`3 \pm \sqrt{2}` as the two values it stands for."""
    if text.count(r"\pm") != 1 or collection(text) is not None:
        return text
    first = text.replace(r"\pm", "+", 1).strip().removeprefix("+").strip()
    sides = equation(first)
    second = text.replace(r"\pm", "-", 1).strip()
    if sides is not None and len(sides) == 2:
        return f"{sides[0]} = {sides[1].removeprefix('+').strip()}, {second}"
    return f"{first}, {second}"


def matrix(text: str) -> list[list[str]] | None:
    r"""The cells of `\begin{pmatrix}…` or of `[[1, 2], [3, 4]]`; None for anything else."""
    around = enclosed(text)
    if around is not None and around[1].startswith("\\begin"):
        text = around[1]
    match = _MATRIX.fullmatch(text)
    if match is not None:
        rows = [[cell.strip() for cell in row.split("&")] for row in _ROW.split(match[2])]
        if rows and rows[-1] == [""]:
            rows.pop()
        return rows if sum(map(len, rows)) <= MAX_ITEMS else None
    if around is None or around[0] != "[]" or not around[1].startswith("["):
        return None
    parts = [enclosed(row) for row in split_top(around[1], ",")]
    if len(parts) > MAX_ITEMS or any(part is None or part[0] != "[]" for part in parts):
        return None
    return [split_top(part[1], ",") for part in parts if part is not None]


def equation(text: str) -> list[str] | None:
    """The sides of `a = b` (or of a chain `a = b = c`); None when there is no "=" or an inequality."""
    found = relation_sides(text)
    return found[1] if found is not None and found[0] == "=" else None


def relation_sides(text: str) -> tuple[str, list[str]] | None:
    r"""The relation and its sides, `>` and `\ge` reversed; None when there is none, or several different ones."""
    operators, sides = _relations(text)
    if not operators or len(set(operators)) != 1 or (operators[0] != "=" and len(operators) != 1):
        return None
    return operators[0], sides


def _relations(text: str) -> tuple[list[str], list[str]]:
    """The relations in a text and their sides, from the smallest on if it begins with `>`; none if a side is empty."""
    operators: list[str] = _RELATION.findall(text)
    sides = [side.strip() for side in _RELATION.split(text)]
    if not all(sides):
        return [], []
    if operators and operators[0] in (">", r"\ge"):
        return [_FLIPPED.get(operator, operator) for operator in operators[::-1]], sides[::-1]
    return operators, sides


def intervals(text: str) -> tuple[str, list[Collection]] | None:
    r"""A set of reals as the variable ("" if none is named) and its intervals.

    Reads `x < 3`, `1 \le x < 5`, `x < 1 or x > 2`, `x > 1 and x < 2`, `x \in [1, 2)`, `\{x : x < 3\}`,
    `(-\infty, 1) \cup (2, 5]` and `\mathbb{R}`. None for anything else.
    """
    name = ""
    if (built := _BUILDER.fullmatch(text)) is not None:
        name, text = built[1], built[2]
    elif (member := _MEMBER.fullmatch(text)) is not None:
        name, text = member[1], member[2]
    if _REALS.fullmatch(text):
        return name, [Collection("()", [r"-\infty", r"\infty"])]
    unequal = relation_sides(text)
    if unequal is not None and unequal[0] == r"\ne" and is_symbol(unequal[1][0]):
        name, hole = unequal[1]
        return name, [Collection("()", [r"-\infty", hole]), Collection("()", [hole, r"\infty"])]
    parts: list[Collection] = []
    for piece in _OR.split(text):
        found = _one_interval(piece.strip())
        if found is None or (name and found[0] and found[0] != name):
            return None
        name = name or found[0]
        parts.append(found[1])
    return name, parts


def _one_interval(text: str) -> tuple[str, Collection] | None:
    if (outward := _OUTWARD.fullmatch(text)) is not None:
        text = "[("[text[0] == "]"] + (outward[1] or outward[2]) + "])"[text[-1] == "["]
    listed = collection(text)
    if listed is not None and listed.kind in ("()", "[]", "(]", "[)") and len(listed.items) == 2:
        return "", Collection(listed.kind, [end.removeprefix("+").strip() for end in listed.items])
    halves = [half for half in _AND.split(text) if half.strip()]
    if len(halves) == 2:  # x > 1 and x < 2
        both = [_one_interval(half.strip()) for half in halves]
        if both[0] is None or both[1] is None or both[0][0] != both[1][0] or not both[0][0]:
            return None
        low, high = both[0][1], both[1][1]
        if low.items[0] == r"-\infty":
            low, high = high, low
        if low.items[1] != r"\infty" or high.items[0] != r"-\infty":
            return None
        return both[0][0], Collection(low.kind[0] + high.kind[1], [low.items[0], high.items[1]])
    operators, sides = _relations(text)
    if not operators or not set(operators) <= {"<", r"\le"}:
        return None
    strict = [operator == "<" for operator in operators]
    if len(sides) == 3 and is_symbol(sides[1]):
        return sides[1], Collection(("(" if strict[0] else "[") + (")" if strict[1] else "]"), [sides[0], sides[2]])
    if len(sides) != 2 or is_symbol(sides[0]) == is_symbol(sides[1]):
        return None
    if is_symbol(sides[0]):
        return sides[0], Collection("()" if strict[0] else "(]", [r"-\infty", sides[1]])
    return sides[1], Collection("()" if strict[0] else "[)", [sides[0], r"\infty"])
