"""What the APIs share: fields of a request's own terms, model cards, the error object. Unknown fields are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from deployments.gateway.api.tolerance import Unserved, served_of
from policies.terms import Level, Strength

MOST_FOCUS = 16


def short(most: int) -> BeforeValidator:
    """Refuses a longer mapping or list before its entries are looked at."""

    def check(value: Any) -> Any:
        if isinstance(value, dict | list) and len(value) > most:
            raise ValueError(f"at most {most:,} entries, not {len(value):,}")
        return value

    return BeforeValidator(check)


FocusField = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=64)], Strength],
    short(MOST_FOCUS),
    Field(
        max_length=MOST_FOCUS,
        description="Class, word or phrase to strength in (-1, 1): positive favours it, negative avoids it."
        " Added to the tenant's standing focus, within the tier's `focus_max`, which below level 1.0 is granted only.",
        examples=[{"ocean": 0.5}],
    ),
]
UtilityField = Annotated[
    Level | None,
    Field(
        description="A utility level in (0, 1]: the key's own or, where its tier grants `lower_utility`, a lower one.",
        examples=[0.8],
    ),
]


class StrictModel(BaseModel):
    """A part of a request. What it does not know is refused by name; what it knows and does not serve, by its value.

    Attributes:
        unserved: fields besides its own that clients send.
        where: how a client writes what its fields belong to.
    """

    model_config = ConfigDict(extra="forbid")
    unserved: ClassVar[Mapping[str, Unserved]] = {}
    where: ClassVar[str] = ""

    @model_validator(mode="before")
    @classmethod
    def _only_served(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return served_of(cls.__name__, fields, cls.model_fields, cls.unserved, cls.where)


class ModelCard(BaseModel):
    """One model as this key may use it."""

    id: str = Field(description="Model id.")
    object: Literal["model"] = Field(default="model", description="Kind of object.")
    created: int = Field(description="Unix time at which it was ready.")
    owned_by: str = Field(default="local", description="Always local.")
    task: str = Field(description="image-classification, image-segmentation or text-generation.")
    utility: float = Field(description="This key's level of the model.")
    lowest_utility: float = Field(description="The lowest level that this key can ask for.")
    focus_classes: list[str] | None = Field(
        description="Names that focus may use; null for a text model, where any word or phrase will do."
    )
    context: int | None = Field(default=None, description="Tokens of prompt and answer together.")
    max_model_len: int | None = Field(default=None, description="The same, under the name that vLLM gives it.")
    root: str = Field(description="Id of the model that answers: another than `id` where that is an alias.")
    pending: str | None = Field(
        default=None, description="What it does not serve yet, while its levels below 1.0 are being solved."
    )


class ModelList(BaseModel):
    """Answer of GET /v1/models."""

    object: Literal["list"] = Field(default="list", description="Kind of object.")
    data: list[ModelCard] = Field(description="Models that this key may use and that are ready.")


class ErrorBody(BaseModel):
    """What went wrong, as OpenAI's API says it."""

    message: str = Field(description="What is wrong and what to change.")
    type: str = Field(description="Kind of error.")
    param: str | None = Field(description="The field at fault.")
    code: str | None = Field(description="A stable code.")


class ErrorResponse(BaseModel):
    """Body of every answer that is not a success."""

    error: ErrorBody = Field(description="The error.")


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": text}
    for status, text in {
        400: "Malformed, unsupported or out-of-range field; `param` names it.",
        401: "Missing, unknown, revoked or expired key.",
        403: "A valid key that is not entitled to this.",
        404: "No such model for this tenant.",
        408: "The deadline passed.",
        413: "Body or image too large.",
        429: "A rate, concurrency or quota limit; see Retry-After.",
        503: "The store is away, a queue is full, a replica starts or its levels are being solved; see Retry-After.",
    }.items()
}
