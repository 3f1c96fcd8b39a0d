"""Inference requests as Triton and KServe write them: JSON, or JSON followed by bytes.

The protocol is version 2 of KServe's, with Triton's extension for binary tensors ("Binary Tensor
Data Extension"): a header says how long the JSON is, and each text of a tensor follows as its
length, 4 bytes with the lowest first, and its bytes.

A model has one input, ``request``: texts ``[N, 1]`` (the axis of 1 may be left out here, not with
Triton), each a request in JSON as `serving score` reads a line; and one output, ``answer``: texts
of the same shape, each what `serving score` writes as a line.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from lookback.core.errors import UserError, shown
from lookback.core.json_files import load_json

INPUT = "request"
OUTPUT = "answer"
TEXT = "BYTES"
VARIANT = "model_variant"
"""A parameter of a call: the name of another model of the server, which answers in its place."""
PROBE = "probe"
"""A parameter of a call to Triton: true asks for a score of random rows, whatever the texts are."""

JSON_LENGTH = "Inference-Header-Content-Length"
"""The header that says how long the JSON before binary tensors is."""

_BINARY_SIZE = "binary_data_size"
_AS_BINARY = "binary_data"
_ALL_AS_BINARY = "binary_data_output"
_LENGTH = struct.Struct("<I")


@dataclasses.dataclass(frozen=True)
class InferenceCall:
    """One call of a model.

    Attributes:
      texts: of the input, N.
      shape: of the input, and so of the output.
      id: that the answer repeats; None: it has none.
      binary: whether the answer's texts follow its JSON.
      variant: the model that is to answer; None: the one that is called.
    """

    texts: Sequence[str | bytes]
    shape: Sequence[int]
    id: str | None
    binary: bool
    variant: str | None


def read_inference(body: bytes, json_length: str | None) -> InferenceCall:
    """Reads the body of ``POST /v2/models/NAME/infer``.

    Args:
      body: all of it.
      json_length: the header `JSON_LENGTH`, if there is one.

    Raises:
      UserError: saying what was expected and what came.
    """
    length = len(body) if json_length is None else _number(json_length, len(body))
    content = load_json(body[:length], "the body")
    given = _object(content, "the body", {"inputs"}, {"id", "parameters", "outputs"})
    inputs = given["inputs"]
    if not isinstance(inputs, list) or len(inputs) != 1:
        raise UserError(
            f"inputs: expected a list of one tensor, {INPUT!r}, received {shown(inputs)}."
        )
    texts, shape = _texts(inputs[0], body[length:])
    number = given.get("id")
    if not isinstance(number, str | None):
        raise UserError(f"id: expected text, received {shown(number)}.")
    parameters = given.get("parameters")
    variant = parameters.get(VARIANT) if isinstance(parameters, dict) else None
    return InferenceCall(texts, shape, number, _wants_binary(given), variant)


def write_inference(
    model: str, version: int, call: InferenceCall, answers: Sequence[str]
) -> tuple[bytes, dict[str, str]]:
    """The body that answers a call, and the headers that tell how to read it.

    Args:
      model: its name.
      version: of it.
      call: what is answered.
      answers: N texts.
    """
    output: dict[str, Any] = {"name": OUTPUT, "datatype": TEXT, "shape": list(call.shape)}
    said: dict[str, Any] = {"model_name": model, "model_version": str(version)}
    if call.id is not None:
        said["id"] = call.id
    if not call.binary:
        output["data"] = list(answers)
        text = json.dumps({**said, "outputs": [output]}, ensure_ascii=False)
        return text.encode(), {"Content-Type": "application/json"}
    encoded = [answer.encode() for answer in answers]
    tensor = b"".join(_LENGTH.pack(len(text)) + text for text in encoded)
    output["parameters"] = {_BINARY_SIZE: len(tensor)}
    header = json.dumps({**said, "outputs": [output]}).encode()
    return header + tensor, {
        "Content-Type": "application/octet-stream",
        JSON_LENGTH: str(len(header)),
    }


def metadata_of(model: str, version: int) -> dict[str, Any]:
    """What ``GET /v2/models/NAME`` says."""
    return {
        "name": model,
        "versions": [str(version)],
        "platform": "lookback",
        "inputs": [{"name": INPUT, "datatype": TEXT, "shape": [-1, 1]}],
        "outputs": [{"name": OUTPUT, "datatype": TEXT, "shape": [-1, 1]}],
    }


def _texts(tensor: Any, rest: bytes) -> tuple[Sequence[str | bytes], Sequence[int]]:
    """The texts of the input, from its JSON or from the bytes that follow it, and its shape."""
    needed = {"name", "datatype", "shape"}
    given = _object(tensor, "inputs[0]", needed, {"data", "parameters"})
    if given["name"] != INPUT or given["datatype"] != TEXT:
        raise UserError(
            f"inputs[0]: expected {INPUT!r} of {TEXT}, received {shown(given['name'])} of "
            f"{shown(given['datatype'])}."
        )
    parameters = given.get("parameters", {})
    size = parameters.get(_BINARY_SIZE) if isinstance(parameters, dict) else None
    if size is None:
        texts: Sequence[str | bytes] = _listed(given.get("data"))
        if rest:
            raise UserError(f"expected nothing behind the JSON, received {len(rest)} bytes.")
    else:
        if size != len(rest) or "data" in given:
            raise UserError(
                f"inputs[0]: expected {shown(size)} bytes behind the JSON and no data in it, "
                f"received {len(rest)} bytes."
            )
        texts = _cut(rest)
    for shape in ([len(texts), 1], [len(texts)]):
        if given["shape"] == shape:
            return texts, shape
    raise UserError(
        f"inputs[0].shape: expected [{len(texts)}, 1], received {shown(given['shape'])}."
    )


def _listed(data: Any) -> list[str]:
    if isinstance(data, list):
        data = [x[0] if isinstance(x, list) and len(x) == 1 else x for x in data]  # of [N, 1]
    if not isinstance(data, list) or not all(isinstance(text, str) for text in data):
        raise UserError(f"inputs[0].data: expected a list of texts, received {shown(data)}.")
    return data


def _cut(tensor: bytes) -> list[bytes]:
    texts, place = [], 0
    while place < len(tensor):
        end = place + _LENGTH.size
        if end <= len(tensor):
            end += _LENGTH.unpack_from(tensor, place)[0]
        if end > len(tensor):
            raise UserError(
                "inputs[0]: expected texts with their lengths before them, received one that is "
                "cut off."
            )
        texts.append(tensor[place + _LENGTH.size : end])
        place = end
    return texts


def _wants_binary(given: Mapping[str, Any]) -> bool:
    outputs = given.get("outputs")
    parameters = given.get("parameters")
    wanted = isinstance(parameters, dict) and parameters.get(_ALL_AS_BINARY) is True
    if outputs is None:
        return wanted
    if not isinstance(outputs, list) or len(outputs) != 1:
        raise UserError(f"outputs: expected a list of one, {OUTPUT!r}, received {shown(outputs)}.")
    output = _object(outputs[0], "outputs[0]", {"name"}, {"parameters"})
    if output["name"] != OUTPUT:
        raise UserError(f"outputs[0].name: expected {OUTPUT!r}, received {shown(output['name'])}.")
    own = output.get("parameters")
    return bool(own[_AS_BINARY]) if isinstance(own, dict) and _AS_BINARY in own else wanted


def _object(value: Any, what: str, needed: set[str], allowed: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{what}: expected an object, received {shown(value)}.")
    missing, unknown = sorted(needed - set(value)), sorted(set(value) - needed - allowed)
    if missing or unknown:
        faults = [f"{name!r} is missing" for name in missing]
        faults += [f"{shown(name)} is unknown" for name in unknown]
        raise UserError(f"{what}: {', '.join(faults[:5])}.")
    return value


def _number(text: str, most: int) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 12 or int(text) > most:
        raise UserError(
            f"{JSON_LENGTH}: expected at most {most}, all of the body, received {shown(text)}."
        )
    return int(text)
