"""Lists the routes of an application with what their views declare: @guard or @public, @contract, a docstring."""

import inspect
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, get_args

from flask import Flask, Response
from pydantic import BaseModel
from werkzeug.routing import Rule

from server.endpoint import PUBLIC, Access, Contract
from server.limits import is_limited

JSON = dict[str, Any]


@dataclass(frozen=True)
class Route:
    """A method at an address, and its view."""

    rule: Rule
    method: str
    view: Callable[..., Any]

    @property
    def name(self) -> str:
        """The name of the view, which is the operationId."""
        return self.view.__name__

    @property
    def path(self) -> str:
        """The address as OpenAPI writes it: `/user/{user_id}`."""
        return re.sub(r"<(?:[^<>:]+:)?([^<>]+)>", r"{\1}", self.rule.rule)

    @property
    def access(self) -> Access:
        """Who may call the view."""
        access: Access = self.view.access  # type: ignore[attr-defined]
        return access

    @property
    def contract(self) -> Contract:
        """The arguments of the view's @contract."""
        contract: Contract = self.view.contract  # type: ignore[attr-defined]
        return contract

    @property
    def body(self) -> type[BaseModel] | None:
        """The model of the JSON or the form."""
        return self.contract.inputs.get("json") or self.contract.inputs.get("form")

    @property
    def query(self) -> type[BaseModel] | None:
        """The model of the query string."""
        return self.contract.inputs.get("query")

    @property
    def creates(self) -> bool:
        """Whether a successful answer is 201."""
        return self.contract.status == 201

    @property
    def is_json(self) -> bool:
        """Whether the view returns a model, which `@contract` writes as JSON. Otherwise it returns a Response."""
        return self.contract.answer is not Response

    @property
    def is_idempotent(self) -> bool:
        """Whether the view reads the Idempotency-Key."""
        return hasattr(self.view, "is_idempotent")

    @property
    def errors(self) -> set[int]:
        """The statuses of all errors that the view can answer."""
        rules = {
            (401,): self.access is not PUBLIC,
            (403,): self.access.may_forbid,
            (404,): "{" in self.path,
            (400, 413, 415, 422): self.body is not None,
            (422,): self.query is not None,
            (429,): is_limited(self.view),
            (502,): self.contract.files,
            (503,): self.contract.uses_database,
        }
        return {500, *self.contract.errors}.union(*(codes for codes, applies in rules.items() if applies))

    @property
    def security(self) -> list[JSON]:
        """The security requirements of OpenAPI: any of these tokens; {} allows no token."""
        usual = () if self.access is PUBLIC else ("access_token",)
        tokens = usual if self.contract.tokens is None else self.contract.tokens
        return [{token: []} if token else {} for token in tokens]


def routes(app: Flask, tags: Collection[str], statuses: Collection[int]) -> list[Route]:
    """Return every route of the application except static files.

    `tags` and `statuses` are those that the document describes. Raises RuntimeError with a sentence that names the view
    if a view lacks something, or has a tag or an error that the document does not describe.
    """
    found = [
        Route(rule, method, app.view_functions[rule.endpoint])
        for rule in app.url_map.iter_rules()
        if rule.endpoint != "static"
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})
    ]
    names = Counter(route.name for route in found)
    for route in found:
        fault = (
            "shares its name with another route."
            if names[route.name] > 1
            else next(_faults(route, tags, statuses), None)
        )
        if fault:
            raise RuntimeError(f"The view {route.name} ({route.method} {route.rule.rule}) {fault}")
    return found


def _faults(route: Route, tags: Collection[str], statuses: Collection[int]) -> Iterator[str]:
    """Yield a sentence, without its subject, for each fault of the route's view."""
    if not hasattr(route.view, "access"):
        yield "does not say who may call it: put @guard(...) or @public above @contract."
    if not hasattr(route.view, "contract"):
        yield "has no contract: put @contract(...) above it."
    if not inspect.getdoc(route.view):
        yield "has no docstring: its first line is the summary in the document."
    if route.contract.tag not in tags:
        yield f"has the tag {route.contract.tag!r}, which is not one of {', '.join(tags)}."
    if unknown := set(route.contract.errors) - set(statuses):
        yield f"has the errors {sorted(unknown)}, which the document does not describe."
    responses = route.contract.operation.get("responses", {})
    if not route.is_json and str(route.contract.status) not in responses:
        yield "returns a Response: describe it by @contract(operation={'responses': ...})."
    for model in filter(None, (route.body, *_models_in(route.contract.answer))):
        for field in _fields_without_example(model):
            yield f"has the field {field} without an example: add Field(examples=[...])."


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the models that an annotation names, such as `list[UserOut] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _fields_without_example(model: type[BaseModel]) -> Iterator[str]:
    """Yield each field without `examples`. An empty list counts: it leaves the field out of the model's example."""
    for name, field in model.model_fields.items():
        nested = _models_in(field.annotation)
        if field.examples is None and not nested:
            yield f"{model.__name__}.{name}"
        for inner in nested:
            yield from _fields_without_example(inner)
