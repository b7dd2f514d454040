"""SGLang's routes about the weights of the model that runs: others from a folder or as tensors, their values and name.

Tensors come as safetensors, never as pickles, and a folder is one that the server's machine has: nothing is fetched.
What becomes of open requests and of the cache is the engine's affair (``engine.weights``). An update that was refused
changed nothing: status 400, SGLang's ``{"success", "message", ...}`` and this server's ``error`` in one answer.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from sglite.runtime.engine.served_weights import LOAD_FORMATS
from sglite.runtime.engine.weight_version import MAX_VERSION
from sglite.runtime.protocol import UpdateWeights
from sglite.runtime.serve.body import check_names, read_object
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.fields import Fields, ignored_header
from sglite.runtime.serve.native_schema import READ_WEIGHTS, UPDATE_FROM_DISK, UPDATE_FROM_TENSOR, WEIGHT_VERSION
from sglite.runtime.serve.responses import json_response
from sglite.runtime.serve.serving import Access, Route, Serving

MAX_TENSORS_BODY = 256 * 2**20
"""Bytes of a body with tensors; more of them are sent in several updates."""
MAX_ROWS = 2**20
_MAX_PATH = 4096
_MAX_NAME = 1000
_DEFAULT_ROWS = 100
_COMMON = ("load_format", "abort_all_requests", "weight_version", "flush_cache", "torch_empty_cache")
_IDLE = ("torch_empty_cache", "recapture_cuda_graph", "token_step", "disable_draft_model")
"""Of no effect here: there is no such cache, graph or draft model, and nobody reads a training step."""
_DISK = (*_COMMON, "model_path", "is_async", "keep_pause", "recapture_cuda_graph", "token_step", "manifest")
_TENSOR = (*_COMMON, "serialized_named_tensors", "disable_draft_model")
_REFUSED = {
    "is_async": "the answer comes when the weights are in use",
    "keep_pause": "send /pause_generation before and /continue_generation after",
    "manifest": "names, shapes and types are read from the safetensors files",
}


class WeightRoutes:
    """Handlers of the routes."""

    def __init__(self, serving: Serving) -> None:
        self._weights = serving.engine.weights
        self._in_flight = serving.in_flight

    def routes(self) -> list[Route]:
        """See the module."""
        write, either, admin = ("POST",), ("GET", "POST"), Access.ADMIN
        return [
            Route("/update_weights_from_disk", write, self.from_disk, admin, UPDATE_FROM_DISK),
            Route("/update_weights_from_tensor", write, self.from_tensor, admin, UPDATE_FROM_TENSOR),
            Route("/update_weight_version", write, self.rename, admin, WEIGHT_VERSION),
            Route("/get_weights_by_name", either, self.read, admin, READ_WEIGHTS),
        ]

    async def from_disk(self, request: Request) -> Response:
        """The weights of a whole checkpoint in place of those that are loaded."""
        body = await read_object(request)
        check_names(body, _DISK, "/update_weights_from_disk", {})
        fields = Fields(body)
        path = fields.text("model_path", _MAX_PATH)
        if not path:
            message = "model_path is missing: the folder of the checkpoint, on the server's machine"
            raise Refused(400, message, param="model_path")
        fields.refuse(_REFUSED)
        abort, flush = _options(fields)
        return await self._update(fields, body, UpdateWeights(folder=path, abort=abort, flush_cache=flush))

    async def from_tensor(self, request: Request) -> Response:
        """Some tensors in place of those that are loaded, as one safetensors file in base64."""
        body = await read_object(request, MAX_TENSORS_BODY)
        check_names(body, _TENSOR, "/update_weights_from_tensor", {})
        fields = Fields(body)
        files = fields.items("serialized_named_tensors")
        if files is None or len(files) != 1 or not isinstance(files[0], str):
            message = (
                "serialized_named_tensors must be a list of one text, for the one rank there is: a safetensors file"
            )
            raise Refused(400, message + " (safetensors.torch.save) in base64", param="serialized_named_tensors")
        abort, flush = _options(fields)
        data = await asyncio.to_thread(_decoded, files[0])
        return await self._update(fields, body, UpdateWeights(tensors=data, abort=abort, flush_cache=flush))

    async def _update(self, fields: Fields, body: Mapping[str, Any], order: UpdateWeights) -> Response:
        version = fields.text("weight_version", MAX_VERSION)
        if version == "":
            raise fields.wrong("weight_version", "must not be empty")
        ignored = [name for name in _IDLE if body.get(name)]
        update = await asyncio.to_thread(self._weights.update, order, version)
        result = await asyncio.wrap_future(update)
        answer: dict[str, Any] = {"success": result.success, "message": result.message}
        if order.tensors is None:
            answer["num_paused_requests"] = result.num_paused_requests
        if not result.success:
            answer.update(Refused(400, result.message, code="weights_refused").event())
        response = json_response(answer, 200 if result.success else 400)
        response.headers.update(ignored_header(ignored))
        return response

    async def rename(self, request: Request) -> Response:
        """The weights stay and have another name; open requests are ended unless the caller says otherwise."""
        body = await read_object(request)
        check_names(body, ("new_version", "abort_all_requests"), "/update_weight_version", {})
        fields = Fields(body)
        version = fields.text("new_version", MAX_VERSION)
        if not version:
            raise Refused(400, "new_version is missing: what the weights are called", param="new_version")
        if fields.flag("abort_all_requests", True):
            self._in_flight.abort(None)
        self._weights.rename(version)
        message = f"the weights are now version {version}"
        return json_response({"success": True, "message": message, "new_version": version})

    async def read(self, request: Request) -> Response:
        """The first rows of a tensor, by its name in a checkpoint, as nested lists."""
        body = {**_query(request), **await read_object(request)}
        check_names(body, ("name", "truncate_size"), "/get_weights_by_name", {})
        fields = Fields(body)
        name, rows = fields.text("name", _MAX_NAME), fields.integer("truncate_size", 1, MAX_ROWS)
        if not name:
            raise Refused(400, "name is missing: a tensor, as the checkpoint calls it", param="name")
        result = await asyncio.wrap_future(self._weights.read(name, rows or _DEFAULT_ROWS))
        if not result.success:
            raise Refused(400, result.message, param="name")
        return json_response(result.values)


def _options(fields: Fields) -> tuple[bool, bool]:
    """What both updates have: whether open requests are ended, whether the cache is given up."""
    load_format = fields.raw("load_format")
    if load_format not in LOAD_FORMATS:
        raise fields.wrong("load_format", "must be auto or safetensors: nothing else is read")
    return fields.flag("abort_all_requests"), fields.flag("flush_cache", True)


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        message = f"serialized_named_tensors[0] is not base64: {error}"
        raise Refused(400, message, param="serialized_named_tensors") from None


def _query(request: Request) -> dict[str, Any]:
    """The fields in the URL; sizes as numbers."""
    found: dict[str, Any] = dict(request.query_params)
    size = found.get("truncate_size", "")
    if size.isdecimal() and len(size) < 10:
        found["truncate_size"] = int(size)
    return found
