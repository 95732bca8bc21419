"""What a client sends of pictures: bytes or base64 in JSON, one or several, and parameters, wherever they stand."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, WithJsonSchema

from deployments.gateway.api import parameters
from deployments.gateway.api.dependencies import is_json, said_kind
from deployments.gateway.api.intake import check_elements
from deployments.gateway.api.schemas import FocusField, StrictModel, UtilityField, short
from deployments.gateway.api.tolerance import Unserved
from policies.errors import InvalidRequest

MOST_PICTURES = 64
_FORM = re.compile(rb"[A-Za-z_][\w.]*=")
_BEGINNING, _SHORTEST = 256, 8
"""Bytes by which text is told from a picture: each format has others among its first."""
Model = TypeVar("Model", bound=BaseModel)


class ImageParameters(StrictModel):
    """Options of an image call."""

    unserved: ClassVar[Mapping[str, Unserved]] = parameters.IMAGE_PARAMETERS

    top_k: int | None = Field(
        default=None, ge=1, description="Classification: most labels to answer, as far as the tier discloses them."
    )
    format: Literal["masks", "labelmap", "rle"] = Field(
        default="masks",
        description="Segmentation: `masks` is a list with a mask for each class, `labelmap` one PNG whose pixels are"
        " the numbers of their classes, `rle` the list with each mask as COCO's run-length encoding.",
    )
    focus: FocusField = Field(default_factory=dict)
    utility: UtilityField = None


def _as_list(inputs: Any) -> Any:
    if isinstance(inputs, str):
        return [inputs]
    if isinstance(inputs, list) and inputs and all(isinstance(one, str) for one in inputs):
        return inputs
    raise ValueError("send a picture as base64, or a list of such pictures")


_INPUTS_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}


class ImageRequest(StrictModel):
    """The JSON form of an image call."""

    unserved: ClassVar[Mapping[str, Unserved]] = parameters.IMAGE_REQUEST

    inputs: Annotated[list[str], short(MOST_PICTURES), BeforeValidator(_as_list), WithJsonSchema(_INPUTS_SCHEMA)] = (
        Field(description=f"The picture's file, base64; or a list of up to {MOST_PICTURES}, answered by a list.")
    )
    parameters: ImageParameters = Field(default_factory=ImageParameters, description="Options.")


@dataclass(frozen=True)
class Pictures:
    """What was sent.

    Attributes:
        files: the pictures, encoded.
        listed: whether they came as a list, and are answered by one.
        parameters: of them all.
    """

    files: list[bytes]
    listed: bool
    parameters: ImageParameters


async def read_pictures(request: Request) -> Pictures:
    """The pictures of a request.

    Raises:
        InvalidRequest, RequestValidationError: it holds none, or a parameter is wrong; the message says what it is.
    """
    given = _query(request)
    body = await request.body()
    kind = request.headers.get("content-type", "")
    if not is_json(kind) and not _looks_like_json(kind, body):
        _check_bytes(kind, body)
        return Pictures([body], False, _validate(ImageParameters, given))
    if not body.strip():
        raise InvalidRequest("The body is empty; send a JSON object with 'inputs'.", param="inputs", code="missing")
    check_elements(body)
    value = _json(body)
    parsed = _validate(ImageRequest, value)
    own = parsed.parameters
    if given:
        own = _validate(ImageParameters, {**own.model_dump(exclude_unset=True), **given})
    listed = isinstance(value["inputs"], list)
    names = [f"inputs[{at}]" if listed else "inputs" for at in range(len(parsed.inputs))]
    return Pictures([_decoded(text, name) for text, name in zip(parsed.inputs, names, strict=True)], listed, own)


def _query(request: Request) -> dict[str, Any]:
    for name in request.query_params:
        if name != "focus" and len(request.query_params.getlist(name)) > 1:
            raise InvalidRequest(f"'{name}' is given more than once; give it once.", param=name, code="invalid_value")
    given: dict[str, Any] = dict(request.query_params)
    if "focus" in given:
        given["focus"] = parse_focus(request.query_params.getlist("focus"))
    return given


def _looks_like_json(kind: str, body: bytes) -> bool:
    """Clients leave the content type out, or `curl` calls it a form; no picture's file begins so."""
    return not kind.startswith(("image/", "multipart/")) and body[:64].lstrip()[:2].startswith((b'{"', b"{\n", b"{ "))


def _check_bytes(kind: str, body: bytes) -> None:
    """Say what a body is that can be no picture."""
    if not body:
        raise InvalidRequest("The body is empty; send the image file.", param="inputs", code="invalid_image")
    form = kind.startswith("multipart/")
    if form or (kind.startswith("application/x-www-form-urlencoded") and _FORM.match(body)):
        raise InvalidRequest(
            f"The body is a form ({kind.partition(';')[0]}); send the image file itself as the body, or JSON with"
            " 'inputs' in base64.",
            param="inputs",
            code="invalid_content_type",
        )
    if not kind.startswith("image/") and _is_text(body):
        raise InvalidRequest(
            f"The body is text, and its content type is {said_kind(kind)}; send the image file itself as the body, or"
            " JSON with 'inputs' in base64.",
            param="inputs",
            code="invalid_content_type",
        )


def _is_text(body: bytes) -> bool:
    """Whether a body begins as no picture's file does: by letters without a control character."""
    begin = body[:_BEGINNING].translate(None, b"\r\n\t")
    return len(begin) >= _SHORTEST and begin.isascii() and begin.decode().isprintable()


def _decoded(text: str, name: str) -> bytes:
    if re.match(r"https?://", text, re.IGNORECASE):
        raise InvalidRequest(
            f"{name} is an address, and nothing is fetched; send the picture itself, in base64.",
            param=name,
            code="invalid_image",
        )
    try:
        # Many encoders break lines at 76 characters.
        return base64.b64decode("".join((text.partition(";base64,")[2] or text).split()), validate=True)
    except ValueError:
        raise InvalidRequest(f"{name} is not base64 of an image file.", param=name, code="invalid_image") from None


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidRequest("The body is not valid JSON; send a JSON object.", code="invalid_json") from None


def _validate(model: type[Model], value: Any) -> Model:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


def parse_focus(texts: list[str]) -> dict[str, str]:
    """`pedestrian=0.9,car=-0.5` to its pairs, also of names that hold commas; pydantic checks the strengths."""
    focus: dict[str, str] = {}
    for text in texts:
        while text:
            # A strength holds neither comma nor '=', a name may hold both.
            pair = re.match(r"(.+?)=([^=,]*)(?:,|$)", text, re.DOTALL)
            if not pair:
                raise InvalidRequest(
                    f"focus must read class=strength,...; '{text}' does not.", param="focus", code="invalid_value"
                )
            name, strength = pair[1].strip(), pair[2]
            if name in focus:
                raise InvalidRequest(
                    f"focus names '{name}' more than once; give it one strength.",
                    param=f"focus.{name}",
                    code="invalid_value",
                )
            focus[name], text = strength, text[pair.end() :]
    return focus
