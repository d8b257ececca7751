"""Reads a TOML text into a pydantic model and says, for every fault, on which line it is.

`tomllib` keeps no positions, so the lines are found by a scan of a text that is already known to be valid TOML.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from app.types import ConfigInvalid

SIZE_LIMIT = 64 * 1024  # bytes
LINE_LIMIT = 2_000  # characters
_FAULTS_SHOWN = 10
_LARGEST = 2**63
_DEEPEST = 16

Loc = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)

# One token of valid TOML that may hold brackets or line ends, or is one. Strings are taken whole.
_TOKEN = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*"{3,5}'
    r"|'''(?:[^']|'(?!''))*'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'"
    r"|\#[^\n]*"
    r"|[\[\]{}\n]",
    re.DOTALL,
)


def read(
    model: type[Model],
    text: str,
    source: str,
    *,
    limit: int = SIZE_LIMIT,
    check: Callable[[Model], Sequence[tuple[Loc, str]]] = lambda value: (),
) -> Model:
    """The `model` that `text` describes; ConfigInvalid names `source`, the line of each fault, and what to write.

    `limit` is in bytes. `check` looks at the finished value and returns further faults: where, and a sentence.
    """
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    try:
        table = _table(text, source, limit)
        value = model.model_validate(table)
        faults = list(check(value))
        if not faults:
            return value
    except ValidationError as error:
        faults = [(tuple(fault["loc"]), _sentence(model, fault)) for fault in error.errors(include_url=False)]
    except _TooLarge as error:
        faults = [(error.loc, f"{_dotted(error.loc)} is too large a number.")]
    lines = _lines_of(text)
    raise _invalid(source, sorted((_line(lines, loc), sentence) for loc, sentence in faults))


def _table(text: str, source: str, limit: int) -> dict[str, Any]:
    if len(text.encode("utf-8", "surrogatepass")) > limit:
        raise _invalid(source, [(1, f"The file is larger than {limit // 1024} kB. Make it shorter.")])
    long = next((number for number, line in enumerate(text.split("\n"), 1) if len(line) > LINE_LIMIT), None)
    if long:  # tomllib takes time quadratic in the parts of a dotted key
        raise _invalid(source, [(long, f"The line is longer than {LINE_LIMIT} characters. Break it up.")])
    try:
        table: dict[str, Any] = _frozen(tomllib.loads(text))
        return table
    except RecursionError:
        raise _invalid(source, [(1, "The file nests brackets too deeply. Write plain tables.")]) from None
    except tomllib.TOMLDecodeError as error:
        raise _invalid(source, [_syntax(text, str(error))]) from None
    except ValueError:  # Python refuses to read a number of thousands of digits
        raise _invalid(source, [(_longest(text), "A number here has too many digits.")]) from None


def _syntax(text: str, message: str) -> tuple[int, str]:
    """Line and sentence of a syntax error, from tomllib's "... (at line 3, column 5)"."""
    at = re.search(r" \(at line (\d+), column \d+\)$", message)
    line = int(at[1]) if at else text.rstrip("\n").count("\n") + 1
    what = re.sub(r" \(at (?:line \d+, column \d+|end of document)\)$", "", message)
    return line, f"This is not valid TOML: {what[:200]}."


def _longest(text: str) -> int:
    """The line with the longest run of digits."""
    runs = list(re.finditer(r"[0-9_]+", text))
    longest = max(runs, key=lambda run: len(run[0]))
    return text.count("\n", 0, longest.start()) + 1


def _invalid(source: str, faults: Sequence[tuple[int, str]]) -> ConfigInvalid:
    shown = [f"{source}, line {line}: {sentence}" for line, sentence in faults[:_FAULTS_SHOWN]]
    if len(faults) > _FAULTS_SHOWN:
        shown.append(f"{len(faults) - _FAULTS_SHOWN} more faults are not shown.")
    return ConfigInvalid("\n".join(shown), source=source, line=faults[0][0])


# ---------------------------------------------------------------- values


class _TooLarge(Exception):
    def __init__(self, loc: Loc) -> None:
        super().__init__()
        self.loc = loc


def _frozen(value: Any, loc: Loc = ()) -> Any:
    """Lists as tuples (the models are frozen and strict); TOML's integers end at 64 bits, Python's do not."""
    if len(loc) > _DEEPEST:
        raise RecursionError
    if isinstance(value, dict):
        return {key: _frozen(entry, (*loc, key)) for key, entry in value.items()}
    if isinstance(value, list):
        return tuple(_frozen(entry, (*loc, index)) for index, entry in enumerate(value))
    if isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
        raise _TooLarge(loc)
    return value


# ---------------------------------------------------------------- lines


def _line(lines: Mapping[Loc, int], loc: Loc) -> int:
    """The line of the longest known beginning of `loc`: a missing key is reported at its table."""
    for length in range(len(loc), 0, -1):
        if loc[:length] in lines:
            return lines[loc[:length]]
    return 1


def _lines_of(text: str) -> dict[Loc, int]:
    """Line (from 1) of every table and key of a valid TOML text."""
    lines: dict[Loc, int] = {}
    arrays: dict[Loc, int] = {}
    prefix: Loc = ()
    for number, statement in _statements(text):
        if statement.lstrip().startswith("["):
            prefix = _header(statement, arrays)
            lines.setdefault(prefix, number)
            continue
        for loc in _paths(tomllib.loads(statement)):
            lines.setdefault((*prefix, *loc), number)
    return lines


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Every header and every `key = value`, with the number of its first line."""
    begin, depth, line, first = 0, 0, 1, 1
    for token in _TOKEN.finditer(text + "\n"):
        if token[0] in ("[", "{"):
            depth += 1
        elif token[0] in ("]", "}"):
            depth -= 1
        line += token[0].count("\n")
        if token[0] == "\n" and depth == 0:
            statement = text[begin : token.start()]
            if statement.strip() and not statement.lstrip().startswith("#"):
                yield first, statement
            begin, first = token.end(), line


def _header(statement: str, arrays: dict[Loc, int]) -> Loc:
    """The place of a `[table]`, or of the next element of `[[array]]`."""
    value: Any = tomllib.loads(statement)
    loc: Loc = ()
    while isinstance(value, dict) and value:
        key, value = next(iter(value.items()))
        loc = (*loc, key)
        if isinstance(value, list):
            arrays[loc] = arrays.get(loc, -1) + 1
            return (*loc, arrays[loc])
        if loc in arrays:
            loc = (*loc, arrays[loc])
    return loc


def _paths(value: Any) -> Iterator[Loc]:
    """Every key and index inside a value, as the way to it."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield (key,)
        for rest in _paths(entry):
            yield (key, *rest)


# ---------------------------------------------------------------- sentences


def _sentence(model: type[BaseModel], fault: Mapping[str, Any]) -> str:
    """One calm sentence for one fault of pydantic."""
    loc, kind, given = tuple(fault["loc"]), fault["type"], fault["input"]
    name, context = _dotted(loc), fault.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_key(model, loc)
    if kind == "missing":
        return f'This entry of {_dotted(loc[:-1])} has no {loc[-1]}. Add {loc[-1]} = "…".'
    if kind == "value_error":
        return f"{name} {context['error']}"
    wanted = _WANTED.get(kind)
    expected = wanted.format(**context).replace("'", '"') if wanted else f"valid ({fault['msg']})"
    return f"{name} must be {expected}, not {_show(given)}."


_WANTED: Mapping[str, str] = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "an ordinary number",
    "string_type": "a text in quotes",
    "tuple_type": "a list in square brackets",
    "dict_type": "a table",
    "model_type": "a table",
    "literal_error": "{expected}",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "string_too_long": "a text of at most {max_length} characters",
    "string_too_short": "a text that is not empty",
    "too_long": "a list of at most {max_length} entries",
}


def _dotted(loc: Loc) -> str:
    """The key as it would be written, e.g. `limits.minutes`; which element of a list it is, the line tells."""
    return ".".join(_show_key(part) for part in loc if isinstance(part, str))


def _show_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]{1,60}", key) else _show(key)


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value if len(value) <= 40 else f"{value[:40]}…", ensure_ascii=False)
    if isinstance(value, tuple):
        return "a list"
    return "a table" if isinstance(value, dict) else str(value)[:40]


def _unknown_key(model: type[BaseModel], loc: Loc) -> str:
    known = sorted(_model_at(model, loc[:-1]).model_fields)
    near = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.6)
    place = f"a key of {_dotted(loc[:-1])}" if len(loc) > 1 else "a known key here"
    hint = f"Did you mean {near[0]}?" if near else f"Known keys: {', '.join(known)}."
    return f"{_show_key(str(loc[-1]))} is not {place}. {hint}"


def _model_at(model: type[BaseModel], loc: Loc) -> type[BaseModel]:
    """The model of the table at `loc`: follows fields, and the element type of lists."""
    for part in loc:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        inner = [annotation, *getattr(annotation, "__args__", ())]
        model = next(kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel))
    return model
