"""As much of JSON Schema as `serving.json_schemas` uses, and of its own keywords, to judge by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

TYPES: dict[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}
TOLD = {"$schema", "title", "description", "default"}


def accepts(schema: dict[str, Any], value: Any) -> bool:
    """Whether a value is as a schema says; fails for keywords that nobody judges."""
    return all(_judge(keyword, of, schema, value) for keyword, of in schema.items())


def _judge(keyword: str, of: Any, schema: dict[str, Any], value: Any) -> bool:
    listed, held = isinstance(value, list), isinstance(value, dict)
    number = TYPES["number"](value)
    match keyword:
        case "type":
            return any(TYPES[kind](value) for kind in ([of] if isinstance(of, str) else of))
        case "anyOf":
            return any(accepts(one, value) for one in of)
        case "properties":
            return not held or all(accepts(of[n], v) for n, v in value.items() if n in of)
        case "required":
            return not held or set(of) <= set(value)
        case "additionalProperties":
            return not held or of or set(value) <= set(schema["properties"])
        case "items":
            return not listed or all(accepts(of, item) for item in value)
        case "prefixItems":
            return not listed or all(map(accepts, of, value))
        case "minItems":
            return not listed or len(value) >= of
        case "maxItems":
            return not listed or len(value) <= of
        case "minimum":
            return not number or value >= of
        case "maximum":
            return not number or value <= of
        case "x-equalLengths":
            lists = [v for v in value.values() if isinstance(v, list)] if held else []
            return len({len(v) for v in lists}) <= 1
        case "x-ascending":
            whole = listed and all(map(TYPES["integer"], value))
            return not whole or sorted(value) == value
    assert keyword in TOLD, keyword
    return True


def values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Scalars and lists that a schema accepts."""
    low, high = schema.get("minimum", -(10**30)), schema.get("maximum", 10**30)
    by_type = {
        "null": st.none(),
        "string": st.text(max_size=4),
        "integer": st.integers(int(low), int(high)),
        "number": st.floats(float(low), float(high), allow_subnormal=False)
        | st.integers(int(low), int(high)),
    }
    kinds = schema.get("type", "integer")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if "array" in kinds:
        by_type["array"] = st.lists(values(schema["items"]), max_size=3)
    return st.one_of(*(by_type[kind] for kind in kinds))


ODD = st.sampled_from(
    [
        *(None, True, 0, 1, -1, 2, 1.5, 2**63, 2**70, -(2**70), 1e20, "x", ""),
        *([], [None], [[1]], [1.5], ["x"], [True], {}, {"x": 1}),
    ]
)


@st.composite
def damaged(draw: st.DrawFn, request: dict[str, Any]) -> Any:
    """A copy of a request that differs in one place; it may still be a good one."""
    if not request or draw(st.booleans()):
        kind = draw(st.sampled_from(["add", "drop", "replace"]))
        if kind == "add" or not request:
            return {**request, draw(st.sampled_from(["more", "k", "timestamp"])): draw(ODD)}
        name = draw(st.sampled_from(sorted(request)))
        if kind == "drop":
            return {n: v for n, v in request.items() if n != name}
        return {**request, name: draw(ODD)}
    name = draw(st.sampled_from(sorted(request)))
    inside = request[name]
    if isinstance(inside, dict):
        return {**request, name: draw(damaged(inside))}
    if isinstance(inside, list) and inside:
        place = draw(st.integers(0, len(inside) - 1))
        new = draw(st.sampled_from(["drop", "replace", "add"]))
        items = [] if new == "drop" else [draw(ODD)]
        return {**request, name: [*inside[:place], *items, *inside[place + (new != "add") :]]}
    return {**request, name: draw(ODD)}
