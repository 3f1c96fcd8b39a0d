"""The command `query`: asks a running server, with lines of JSON or with one request of words."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from lookback.core.errors import UserError
from lookback.core.options import Command, CommandLine, option
from lookback.serving.client.client import SERVER, Client, RefusedError
from lookback.serving.request_lines import request_chunks


@dataclasses.dataclass(frozen=True)
class QueryOptions:
    """What is asked, and where."""

    scope: ClassVar[str] = "query"
    model: str = option(help="name of the model on the server", positional=True, nonempty=True)
    server: str = option(SERVER, help="address of the server")
    timeout: float = option(
        30.0, help="how long a call may take, with all its tries", unit="s", above=0
    )
    requests: str = option("-", help="JSON lines, - for standard input")
    user: str | None = option(None, help="ask for this user alone, in place of --requests")
    history: tuple[str, ...] | None = option(
        None, help="items of the user's history, oldest first; none: the server's store knows it"
    )
    candidates: tuple[str, ...] | None = option(
        None, help="items to score for the user; none: the best of the catalogue"
    )
    k: int | None = option(None, help="how many of the catalogue's best", at_least=1)

    def __post_init__(self) -> None:
        """Validates.

        Raises:
          UserError: if words of a request are there without a user.
        """
        given = [n for n in ("history", "candidates", "k") if getattr(self, n) is not None]
        if self.user is None and given:
            raise UserError(
                f"--{given[0]}: expected with --user, which makes a request of words. Give "
                "--user, or write it into the lines of --requests."
            )


def query(options: QueryOptions) -> None:
    """Prints the answers, a line of JSON each.

    Raises:
      UserError: naming the line that the server refuses, or saying that there is no answer.
    """
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(Client(options.server, timeout=options.timeout))
        if options.user is not None:
            request = request_of(client.schema(options.model), options)
            _print(client, options.model, [("the request", request)])
            return
        lines: BinaryIO = sys.stdin.buffer
        name = "standard input"
        if options.requests != "-":
            name = options.requests
            try:
                lines = stack.enter_context(Path(name).open("rb"))
            except OSError as error:
                raise UserError(f"--requests {name}: {error.strerror}.") from error
        for chunk in request_chunks(lines, name):
            _print(client, options.model, chunk)


def request_of(schema: dict[str, Any], options: QueryOptions) -> dict[str, Any]:
    """The request that the options say.

    Args:
      schema: of the model, as the server gives it.
      options: with a user.

    Raises:
      UserError: if the model takes no such request.
    """
    roles, shape = schema["roles"], schema["request"]
    if "item" not in roles:
        raise UserError(
            f"--user: {options.model} scores rows and ranks nothing for users. Write rows as lines "
            "of --requests."
        )
    item = roles["item"][0]
    forms = shape.get("anyOf", [shape]) if "properties" not in shape else [shape]
    of_user = {n: v for form in forms for n, v in form["properties"].items()}
    of_items = of_user["candidates"]["properties"][item]["items"]
    # Of a model without a user feature, the store's key.
    name = roles["user"][0] if "user" in roles else "user"
    request: dict[str, Any] = {name: _typed(options.user, of_user.get(name, {}))}
    for part in ("history", "candidates"):
        words = getattr(options, part)
        if words is not None:
            request[part] = {item: [_typed(word, of_items) for word in words]}
    if options.k is not None:
        request["k"] = options.k
    return request


def _typed(word: str | None, schema: dict[str, Any]) -> str | int | None:
    """A word as the type that a schema asks for."""
    kinds = schema.get("type", "string")
    if "integer" not in kinds or "string" in kinds or word is None:
        return word
    try:
        return int(word)
    except ValueError:
        raise UserError(f"expected ids that are integers, received {word!r:.60}.") from None


def _print(client: Client, model: str, lines: list[tuple[str, Any]]) -> None:
    try:
        answers = client.answers(model, [request for _, request in lines])
    except RefusedError as error:
        start, _, said = str(error).partition("]: ")
        number = start.removeprefix("requests[")
        if said and number.isdecimal() and int(number) < len(lines):
            raise UserError(f"{lines[int(number)][0]}: {said}") from error
        raise
    for answer in answers:
        print(json.dumps(answer, ensure_ascii=False))
    sys.stdout.flush()


QUERY = Command(
    "ask a running server to score requests",
    CommandLine((QueryOptions,)),
    query,
    "Asks a running server to score requests: lines of JSON as of `serving score`, or one request "
    "that --user, --history, --candidates and --k say. Prints a line of JSON for each.",
)
