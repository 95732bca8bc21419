"""Images, as Hugging Face's Inference API takes them: `POST /models/{id}` with bytes, or JSON with base64."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.responses import Response

from deployments.config import Task
from deployments.contracts.catalog import ModelInfo
from deployments.gateway.api.dependencies import KEY_REQUIRED, Context, Gateway, KeyedRoute
from deployments.gateway.api.image_requests import ImageParameters, ImageRequest, Pictures, read_pictures
from deployments.gateway.api.schemas import ERRORS
from deployments.gateway.api.tasks import check_task
from deployments.gateway.ticket import Cost, Ticket
from policies.errors import InvalidRequest

UNDISCLOSED = "x-scores"
"""Says that the scores of an answer are none: they are all 1, for clients that want a number."""
AT_ONCE = 8
"""Pictures of one request that are under way together."""

router = APIRouter(tags=["images"], dependencies=KEY_REQUIRED, route_class=KeyedRoute, responses=ERRORS)


class Label(BaseModel):
    """One class of an answer."""

    label: str = Field(description="Class name.")
    score: float | None = Field(
        description="Probability, in as many digits as the tier discloses. In none: 1 for every class, and the header"
        " x-scores reads undisclosed; null from a strict gateway."
    )
    mask: str | None = Field(
        default=None, description="Segmentation: base64 PNG at the picture's size, 255 where the class is."
    )


class RunLengths(BaseModel):
    """A mask as COCO has it; `pycocotools.mask.decode` reads it."""

    size: list[int] = Field(description="Height and width in pixels.")
    counts: str = Field(description="Lengths of runs down the columns, compressed.")


class Runs(Label):
    """One class of a segmentation in runs."""

    segmentation: RunLengths = Field(description="Where the class is.")


class Region(Label):
    """One class of a label map."""

    index: int = Field(description="The class's number, which its pixels have.")


class LabelMap(BaseModel):
    """A segmentation as one picture."""

    labels: list[Region] = Field(description="The classes in it.")
    map: str = Field(
        description="Base64 PNG at the picture's size: its pixels are the numbers of their classes, with a palette to"
        " look at; of more than 256 classes grey, of 16 bits."
    )


Answer = list[Label] | list[Runs] | LabelMap

_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary", "description": "The image file."}},
            "application/json": {"schema": ImageRequest.model_json_schema()},
        },
    }
}


@router.post(
    "/models/{model_id:path}",
    response_model=Answer | list[Answer],
    openapi_extra=_BODY,
    summary="Classify or segment",
)
async def infer(
    request: Request,
    model_id: str,
    gateway: Gateway,
    context: Context,
    top_k: Annotated[str | None, Query(description="As `parameters.top_k`.")] = None,
    format: Annotated[str | None, Query(description="As `parameters.format`.")] = None,
    utility: Annotated[str | None, Query(description="As `parameters.utility`.", examples=["0.8"])] = None,
    focus: Annotated[
        list[str] | None, Query(description="As `parameters.focus`; may be repeated.", examples=[["car=-0.5,bus=0.9"]])
    ] = None,
) -> Response:
    """An image as the body, or JSON with `inputs` in base64, one or a list, and `parameters`."""
    info = gateway.entitle(context.caller, model_id)
    check_task(info, Task.CLASSIFICATION, Task.SEGMENTATION)
    sent = await read_pictures(request)
    terms, cost, settings = sent.parameters, Cost(images=len(sent.files)), gateway.settings.now
    _check_task(info, terms)
    async with gateway.admit(context, info.id, cost, utility=terms.utility, focus=terms.focus) as ticket:
        answers = await _answers(ticket, sent, settings.max_image_pixels)
        ticket.lease.settle(images=len(sent.files))
    if not settings.strict and any([_number(answer) for answer in answers]):
        context.headers[UNDISCLOSED] = "undisclosed"
    return JSONResponse(answers if sent.listed else answers[0])


def _check_task(info: ModelInfo, terms: ImageParameters) -> None:
    """Refuse what another task's model would do with its answer."""
    for name, task in (("format", Task.SEGMENTATION), ("top_k", Task.CLASSIFICATION)):
        asked = terms.format != "masks" if name == "format" else terms.top_k is not None
        if asked and info.task is not task:
            raise InvalidRequest(
                f"{name} is of {task}, and '{info.id}' does {info.task}; leave it out.",
                param=f"parameters.{name}",
                code="unsupported_parameter",
            )


async def _answers(ticket: Ticket, sent: Pictures, most_pixels: int) -> list[Any]:
    """The answer to each picture; the first refusal refuses them all."""
    if not sent.listed:
        return [await ticket.call("predict", sent.files[0], sent.parameters.top_k, sent.parameters.format, most_pixels)]
    room, terms = asyncio.Semaphore(AT_ONCE), sent.parameters

    async def one(at: int, file: bytes) -> Any:
        async with room:
            try:
                return await ticket.call("predict", file, terms.top_k, terms.format, most_pixels)
            except InvalidRequest as error:
                if error.param == "inputs":
                    error.param = f"inputs[{at}]"
                raise

    tasks = [asyncio.create_task(one(at, file)) for at, file in enumerate(sent.files)]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _number(answer: Any) -> bool:
    """Put a number where a score is not disclosed, since clients want one. Whether any was not."""
    labels = answer["labels"] if isinstance(answer, dict) else answer
    hidden = [label for label in labels if label["score"] is None]
    for label in hidden:
        label["score"] = 1.0
    return bool(hidden)
