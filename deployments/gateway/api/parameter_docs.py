"""The table of parameters as a page of the documentation: `python -m deployments.gateway.api.parameter_docs`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic.fields import FieldInfo

from deployments.config import REPOSITORY
from deployments.gateway.api import embeddings, response_items, response_schemas, text_schemas
from deployments.gateway.api.image_requests import ImageParameters, ImageRequest
from deployments.gateway.api.messages import ChatMessage, TextPart
from deployments.gateway.api.schemas import StrictModel
from deployments.gateway.api.tolerance import Unserved

BEGIN, END = "<!-- parameters: begin -->", "<!-- parameters: end -->"
Fields = dict[str, FieldInfo | Unserved]


def page() -> Path:
    """The page that has the table."""
    return REPOSITORY / "docs" / "clients.md"


def marked(text: str) -> str:
    """A page with the table of today between its marks."""
    before, _, rest = text.partition(BEGIN)
    tables = "\n".join(_table(title, fields) for title, fields in _sections().items())
    return f"{before}{BEGIN}\n{tables}{END}{rest.partition(END)[2]}"


def _sections() -> dict[str, Fields]:
    chat, completion = _fields(text_schemas.ChatRequest), _fields(text_schemas.CompletionRequest)
    both = {name: field for name, field in chat.items() if _said(field) == _said(completion.get(name))}
    return {
        "Chat and completions": {**both, **_fields(text_schemas.StreamOptions)},
        "Chat alone": {name: field for name, field in chat.items() if name not in both},
        "Turns of a chat": {**_fields(ChatMessage), **_fields(TextPart)},
        "Completions alone": {name: field for name, field in completion.items() if name not in both},
        "Responses": _of(
            response_schemas.ResponseRequest,
            response_schemas.TextOptions,
            response_schemas.Format,
            response_schemas.FunctionTool,
            response_schemas.ResponseStreamOptions,
        ),
        "Items of a response's input": _of(*response_items.KINDS.values(), response_items.ItemText),
        "Embeddings": _fields(embeddings.EmbeddingRequest),
        "Pictures": {**_fields(ImageRequest), **_fields(ImageParameters, "parameters.")},
    }


def _of(*models: type[StrictModel]) -> Fields:
    return {name: field for model in models for name, field in _fields(model).items()}


def _fields(model: type[StrictModel], where: str = "") -> Fields:
    served = {field.alias or name: field for name, field in model.model_fields.items()}
    known: Mapping[str, FieldInfo | Unserved] = {**served, **dict(sorted(model.unserved.items()))}
    return {(where or model.where) + name: field for name, field in known.items()}


def _said(field: FieldInfo | Unserved | None) -> object:
    return field.description if isinstance(field, FieldInfo) else field


def _table(title: str, fields: Fields) -> str:
    lines = [f"### {title}", "", "| field | value | treatment |", "|---|---|---|"]
    alike: dict[tuple[str, str], list[str]] = {}
    for name, field in fields.items():
        if isinstance(field, FieldInfo):
            lines.append(f"| `{name}` | | served: {_cell(field.description or '')} |")
        else:
            for row in _rows(field):
                alike.setdefault(row, []).append(f"`{name}`")
    lines += [f"| {', '.join(names)} | {value} | {treatment} |" for (value, treatment), names in sorted(alike.items())]
    return "\n".join([*lines, "", ""])


def _rows(known: Unserved) -> list[tuple[str, str]]:
    """Values and what becomes of them."""
    if known.nothing is None:
        return [("any", "without effect")]
    values = [f"`{json.dumps(value)}`" for value in known.nothing] + [known.beside_said] * bool(known.beside_said)
    rows = [(", ".join(values), "without effect")] if values else []
    return [*rows, (f"other than {', '.join(values)}" if values else "any", f"refused: {_cell(known.instead)}")]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    page().write_text(marked(page().read_text(encoding="utf-8")), encoding="utf-8")
