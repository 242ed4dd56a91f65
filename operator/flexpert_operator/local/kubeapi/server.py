"""The HTTP server: from a request to one call of `operations`, `reads` or `watch`, and back to a response.

`embedded.serve` runs it. All state is behind `Api`; one event loop uses it.
"""

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from flexpert_operator.local.kubeapi import bodies, deletion, discovery, openapi, parameters, reads, tables, urls
from flexpert_operator.local.kubeapi.api import Api
from flexpert_operator.local.kubeapi.authorization import (
    Attributes,
    Audit,
    Authorizer,
    User,
    newly_blocked_owners,
    verb_of,
)
from flexpert_operator.local.kubeapi.builtin_kinds import RETURN_DELETED
from flexpert_operator.local.kubeapi.errors import ApiError, MethodNotAllowed, NotFound, TooLarge, Unauthorized
from flexpert_operator.local.kubeapi.objects import JsonObject, name_of
from flexpert_operator.local.kubeapi.operations import APPLY_PATCH, WriteOptions, Written
from flexpert_operator.local.kubeapi.resources import ResourceType
from flexpert_operator.local.kubeapi.watch import Change, Watch, WatchOptions, check

VERSION = {
    "major": "1",
    "minor": "32",
    "gitVersion": "v1.32.0-flexpert",
    "gitTreeState": "clean",
    "goVersion": "go1.23",
    "compiler": "gc",
    "platform": "linux/amd64",
}
MAX_BODY_BYTES = 8 << 20

_USER = web.RequestKey("user", User)
_OPEN_PATHS = frozenset({"/healthz", "/livez", "/readyz", "/version"})
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def application(
    api: Api, users: Mapping[str, User], *, bookmark_interval_s: float, audit: Audit | None = None
) -> web.Application:
    """The web application that serves `api` to whoever shows one of the tokens of `users`."""
    handlers = _Handlers(api, bookmark_interval_s, audit)
    app = web.Application(middlewares=[_authentication(users), _errors], client_max_size=MAX_BODY_BYTES)
    for path in ("/healthz", "/livez", "/readyz", "/healthz/{check}", "/livez/{check}", "/readyz/{check}"):
        app.router.add_get(path, handlers.health)
    app.router.add_get("/version", handlers.version)
    app.router.add_get("/api", handlers.groups)
    app.router.add_get("/apis", handlers.groups)
    app.router.add_get("/apis/{group}", handlers.group)
    app.router.add_get("/openapi/v2", handlers.openapi_v2)
    app.router.add_get("/openapi/v3", handlers.openapi_index)
    app.router.add_get("/openapi/v3/{name:.+}", handlers.openapi_document)
    app.router.add_route("*", "/{path:.*}", handlers.resource)
    return app


def json_response(body: Any, status: int = 200, warnings: tuple[str, ...] = ()) -> web.Response:
    """A JSON response, with its warnings as headers."""
    response = web.Response(text=_compact(body), status=status, content_type="application/json")
    for text in warnings:
        response.headers.add("Warning", '299 - "' + text.replace('"', '\\"') + '"')
    return response


def _compact(body: Any) -> str:
    return json.dumps(body, separators=(",", ":"))


def _authentication(users: Mapping[str, User]) -> Any:
    known = [(f"Bearer {token}".encode(), user) for token, user in users.items()]

    @web.middleware
    async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode()
        shown = [user for header, user in known if hmac.compare_digest(given, header)]
        if shown:
            request[_USER] = shown[0]
        if shown or request.path in _OPEN_PATHS:
            return await handler(request)
        error = Unauthorized("Unauthorized")
        response = json_response(error.status(), error.code)
        response.headers["WWW-Authenticate"] = "Bearer"
        return response

    return authenticate


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ApiError as error:
        return json_response(error.status(), error.code)
    except web.HTTPRequestEntityTooLarge:
        large = TooLarge(f"limit is {MAX_BODY_BYTES}")
        return json_response(large.status(), large.code)


class _Handlers:
    """One method for each kind of URL."""

    def __init__(self, api: Api, bookmark_interval_s: float, audit: Audit | None) -> None:
        self._api = api
        self._bookmark_interval_s = bookmark_interval_s
        self._authorizer = Authorizer(api.store)
        self._audit = audit

    async def health(self, request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def version(self, request: web.Request) -> web.Response:
        return json_response(VERSION)

    async def groups(self, request: web.Request) -> web.Response:
        core = request.path == "/api"
        view = tables.negotiate(request.headers.get("Accept", ""))
        if view.form == "APIGroupDiscoveryList":
            body = _compact(discovery.aggregated(self._api.registry, core=core))
            return web.Response(body=body.encode(), headers={"Content-Type": discovery.AGGREGATED})
        return json_response(discovery.api_versions() if core else discovery.group_list(self._api.registry))

    async def group(self, request: web.Request) -> web.Response:
        return json_response(discovery.group(self._api.registry, request.match_info["group"]))

    async def openapi_v2(self, request: web.Request) -> web.Response:
        tables.negotiate(request.headers.get("Accept", ""))
        return json_response(openapi.v2())

    async def openapi_index(self, request: web.Request) -> web.Response:
        return json_response(openapi.index(self._api.registry))

    async def openapi_document(self, request: web.Request) -> web.Response:
        return json_response(openapi.document(self._api.registry, request.match_info["name"]))

    async def resource(self, request: web.Request) -> web.StreamResponse:
        target = urls.parse(request.path)
        if not target.plural:
            return json_response(discovery.resource_list(self._api.registry, target.group, target.version))
        resource = self._api.registry.find(target.group, target.version, target.plural)
        if target.subresource and target.subresource not in resource.subresources:
            raise NotFound("the server could not find the requested resource")
        verbs: dict[tuple[str, bool], Callable[..., Awaitable[web.StreamResponse]]] = {
            ("GET", False): self._list_or_watch,
            ("POST", False): self._create,
            ("DELETE", False): self._delete_collection,
            ("GET", True): self._get,
            ("POST", True): self._act,
            ("PUT", True): self._update,
            ("PATCH", True): self._patch,
            ("DELETE", True): self._delete,
        }
        handler = verbs.get((request.method, bool(target.name)))
        if handler is None or (resource.namespaced and target.name and target.namespace is None):
            raise MethodNotAllowed("the server does not allow this method on the requested resource")
        watch = parameters.is_true(request.query.get("watch", "false"))
        self._authorize(request, target, verb_of(request.method, named=bool(target.name), watch=watch))
        return await handler(request, resource, target)

    def _authorize(self, request: web.Request, target: urls.Target, verb: str) -> None:
        asked = Attributes(
            request[_USER], verb, target.group, target.plural, target.subresource, target.namespace or "", target.name
        )
        if self._audit is not None:
            self._audit(asked)
        self._authorizer.check(asked)

    def _authorize_owners(self, request: web.Request, target: urls.Target, body: Any, live: JsonObject | None) -> None:
        """Whoever makes an owner's deletion wait for an object must be able to write the owner's finalizers."""
        for owner in newly_blocked_owners(body, live):
            kind = self._api.registry.of_kind(str(owner.get("apiVersion")), str(owner.get("kind")))
            if kind is not None:
                name, subresource = str(owner.get("name")), "finalizers"
                blocked = urls.Target(kind.group, kind.version, kind.plural, target.namespace, name, subresource)
                self._authorize(request, blocked, "update")

    # --- reading -----------------------------------------------------------------------------------------------

    def _view(self, request: web.Request) -> tables.View:
        return tables.negotiate(
            request.headers.get("Accept", ""),
            include=request.query.get("includeObject", "Metadata"),
            now_s=self._api.clock().timestamp(),
        )

    async def _list_or_watch(
        self, request: web.Request, resource: ResourceType, target: urls.Target
    ) -> web.StreamResponse:
        chosen = parameters.selector(request.query, resource, target.namespace)
        if "watch" in request.query and parameters.is_true(request.query["watch"]):
            return await self._watch(request, resource, parameters.watch_options(request.query, chosen))
        page = reads.list_page(self._api.store, resource, parameters.list_options(request.query, chosen))
        return json_response(self._view(request).many(resource, page.items, page.metadata))

    async def _get(self, request: web.Request, resource: ResourceType, target: urls.Target) -> web.Response:
        key = resource.key(target.namespace, target.name)
        if target.subresource == "scale":
            return json_response(self._api.operations.scale_of(resource, key))
        obj = self._api.operations.live(resource, key)
        return json_response(self._view(request).one(resource, obj))

    async def _watch(self, request: web.Request, resource: ResourceType, options: WatchOptions) -> web.StreamResponse:
        check(options)
        view = self._view(request)
        watch = Watch(self._api.store, resource, options)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        try:
            await response.prepare(request)
            await self._stream(response, watch, view, resource, options)
        except ConnectionResetError:
            pass  # the client is gone, which ends a watch as well as its timeout does
        finally:
            watch.close()
        return response

    async def _stream(
        self,
        response: web.StreamResponse,
        watch: Watch,
        view: tables.View,
        resource: ResourceType,
        options: WatchOptions,
    ) -> None:
        """Write changes until the watch's time is over; bookmarks in between and at the end."""
        clock = asyncio.get_running_loop().time
        end, header = clock() + options.timeout_s, True
        while (left := end - clock()) > 0:
            change = await watch.next(min(left, self._bookmark_interval_s))
            if change is None and options.bookmarks:
                change = watch.bookmark()
            if change is None:
                continue
            await response.write(_line(change, view, resource, header=header))
            header = False
            if change.type == "ERROR":
                return

    # --- writing -----------------------------------------------------------------------------------------------

    async def _create(self, request: web.Request, resource: ResourceType, target: urls.Target) -> web.Response:
        body = bodies.parse(await request.read(), request.content_type)
        self._authorize_owners(request, target, body.value, None)
        options = self._write_options(request, body)
        written = self._api.operations.create(resource, target.namespace, body.value, options)
        return self._written(request, resource, target, written)

    async def _update(self, request: web.Request, resource: ResourceType, target: urls.Target) -> web.Response:
        body = bodies.parse(await request.read(), request.content_type)
        key = resource.key(target.namespace, target.name)
        self._authorize_owners(request, target, body.value, self._api.store.get(key))
        options = self._write_options(request, body)
        written = self._api.operations.update(resource, key, body.value, target.subresource, options)
        return self._written(request, resource, target, written)

    async def _patch(self, request: web.Request, resource: ResourceType, target: urls.Target) -> web.Response:
        body = bodies.parse(await request.read(), request.content_type)
        key = resource.key(target.namespace, target.name)
        live = self._api.store.get(key)
        if live is None and request.content_type == APPLY_PATCH:
            self._authorize(request, target, "create")
        self._authorize_owners(request, target, body.value, live)
        options = self._write_options(request, body)
        written = self._api.operations.patch(
            resource, key, request.content_type, body.value, target.subresource, options
        )
        return self._written(request, resource, target, written)

    async def _act(self, request: web.Request, resource: ResourceType, target: urls.Target) -> web.Response:
        """POST to an object: eviction and binding of a pod."""
        body = bodies.parse(await request.read(), request.content_type).value
        key = resource.key(target.namespace, target.name)
        if target.subresource == "eviction":
            options = deletion.parse_options(body.get("deleteOptions") or {}, dict(request.query))
            status = self._api.operations.evict(resource, key, options)
        elif target.subresource == "binding":
            status = self._api.operations.bind(resource, key, str(name_of({"metadata": body.get("target") or {}})))
        else:
            raise MethodNotAllowed("the server does not allow this method on the requested resource")
        return json_response(status, 201)

    async def _delete(self, request: web.Request, resource: ResourceType, target: urls.Target) -> web.Response:
        body = bodies.parse(await request.read(), request.content_type).value
        options = deletion.parse_options(body, dict(request.query))
        obj, gone = self._api.operations.delete(resource, resource.key(target.namespace, target.name), options)
        if not gone or resource.where in RETURN_DELETED:
            return json_response(obj)
        details: JsonObject = {"name": target.name, "group": resource.group, "kind": resource.plural}
        details["uid"] = obj["metadata"]["uid"]
        status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
        return json_response(status)

    async def _delete_collection(
        self, request: web.Request, resource: ResourceType, target: urls.Target
    ) -> web.Response:
        body = bodies.parse(await request.read(), request.content_type).value
        options = deletion.parse_options(body, dict(request.query))
        chosen = parameters.selector(request.query, resource, target.namespace)
        page = reads.list_page(self._api.store, resource, reads.ListOptions(selector=chosen))
        for obj in page.items:
            key = resource.key(obj["metadata"].get("namespace"), name_of(obj))
            self._api.operations.delete(resource, key, options)
        return json_response(self._view(request).many(resource, page.items, page.metadata))

    def _write_options(self, request: web.Request, body: bodies.Body) -> WriteOptions:
        return parameters.write_options(
            request.query,
            request.headers.get("User-Agent", ""),
            body.duplicates,
            is_apply=request.content_type == APPLY_PATCH,
        )

    def _written(
        self, request: web.Request, resource: ResourceType, target: urls.Target, written: Written
    ) -> web.Response:
        shown = written.object
        if target.subresource != "scale":
            shown = self._view(request).one(resource, shown)
        return json_response(shown, 201 if written.created else 200, written.warnings)


def _line(change: Change, view: tables.View, resource: ResourceType, *, header: bool) -> bytes:
    """One line of a watch's response."""
    shown = change.object
    if change.type == "BOOKMARK" and view.form == "Table":
        shown = view.many(resource, [], {"resourceVersion": shown["metadata"]["resourceVersion"]})
    elif change.type != "ERROR":
        shown = view.one(resource, shown, header=header)
    return _compact({"type": change.type, "object": shown}).encode() + b"\n"
