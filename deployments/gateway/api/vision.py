"""Images, as Hugging Face's Inference API takes them: `POST /models/{id}` with bytes, or JSON with base64."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, ValidationError
from starlette.responses import Response

from deployments.config import Task
from deployments.gateway.api.dependencies import KEY_REQUIRED, Context, Gateway, KeyedRoute
from deployments.gateway.api.schemas import ERRORS, FocusField, StrictModel, UtilityField
from deployments.gateway.ticket import Cost
from policies.errors import InvalidRequest

Model = TypeVar("Model", bound=BaseModel)

router = APIRouter(tags=["images"], dependencies=KEY_REQUIRED, route_class=KeyedRoute, responses=ERRORS)


class ImageParameters(StrictModel):
    """Options of an image call."""

    top_k: int | None = Field(
        default=None, ge=1, description="Classification: most labels to answer, as far as the tier discloses them."
    )
    focus: FocusField = Field(default_factory=dict)
    utility: UtilityField = None


class ImageRequest(StrictModel):
    """The JSON form of an image call."""

    inputs: str = Field(description="The image file, base64.")
    parameters: ImageParameters = Field(default_factory=ImageParameters, description="Options.")


class Label(BaseModel):
    """One class of an answer."""

    label: str = Field(description="Class name.")
    score: float | None = Field(description="Probability, in as many digits as the tier discloses; null: in none.")
    mask: str | None = Field(
        default=None, description="Segmentation: base64 PNG at the picture's size, 255 where the class is."
    )


_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary", "description": "The image file."}},
            "application/json": {"schema": ImageRequest.model_json_schema()},
        },
    }
}


@router.post("/models/{model_id}", response_model=list[Label], openapi_extra=_BODY, summary="Classify or segment")
async def infer(
    request: Request,
    model_id: str,
    gateway: Gateway,
    context: Context,
    top_k: Annotated[str | None, Query(description="As `parameters.top_k`.")] = None,
    utility: Annotated[str | None, Query(description="As `parameters.utility`.", examples=["0.8"])] = None,
    focus: Annotated[
        list[str] | None, Query(description="As `parameters.focus`; may be repeated.", examples=[["car=-0.5,bus=0.9"]])
    ] = None,
) -> Response:
    """An image as the body (any content type but JSON), or JSON with `inputs` in base64 and `parameters`."""
    info = gateway.entitle(context.caller, model_id)
    if info.task is Task.TEXT:
        raise InvalidRequest(
            f"'{model_id}' generates text; use POST /v1/chat/completions.", param="model", code="wrong_task"
        )
    image, parameters = await _read(request, {"top_k": top_k, "utility": utility, "focus": focus})
    terms, cost = parameters, Cost(images=1)
    async with gateway.admit(context, model_id, cost, utility=terms.utility, focus=terms.focus) as ticket:
        answer = await ticket.call("predict", image, parameters.top_k, gateway.settings.now.max_image_pixels)
        ticket.lease.settle(images=1)
    return JSONResponse(answer)


async def _read(request: Request, query: Mapping[str, str | list[str] | None]) -> tuple[bytes, ImageParameters]:
    """The image's bytes and the parameters, wherever the client put them."""
    if unknown := sorted(set(request.query_params) - set(query)):
        raise InvalidRequest(
            f"Unsupported parameter: '{unknown[0]}'. Leave it out.", param=unknown[0], code="unsupported_parameter"
        )
    _refuse_repeated(request)
    body = await request.body()
    given: dict[str, Any] = {name: value for name, value in query.items() if value is not None}
    if "focus" in given:
        given["focus"] = _parse_focus(given["focus"])
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        if not body:
            raise InvalidRequest("The body is empty; send the image file.", param="inputs", code="invalid_image")
        return body, _validate(ImageParameters, given)
    parsed = _validate(ImageRequest, _json(body))
    if given:
        parsed = _validate(
            ImageRequest,
            {"inputs": parsed.inputs, "parameters": {**parsed.parameters.model_dump(exclude_unset=True), **given}},
        )
    try:
        return base64.b64decode(
            parsed.inputs.partition(";base64,")[2] or parsed.inputs, validate=True
        ), parsed.parameters
    except ValueError:
        raise InvalidRequest("inputs is not base64 of an image file.", param="inputs", code="invalid_image") from None


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


def _refuse_repeated(request: Request) -> None:
    for name in request.query_params:
        if name != "focus" and len(request.query_params.getlist(name)) > 1:
            raise InvalidRequest(f"'{name}' is given more than once; give it once.", param=name, code="invalid_value")


def _parse_focus(texts: list[str]) -> dict[str, str]:
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
