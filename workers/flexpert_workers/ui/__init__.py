"""The page of a pool at `/ui`: what the pool controller knows, live, and a dry run of a plan. It changes nothing.

`controller_actor` starts it beside the gRPC service, with `serve_ui`. `app` is the HTTP side, `feed` takes a `snapshot`
a few times a second while somebody watches, `dry_run` has a placement worked out in a process of its own. What a
browser gets is in `static/`, as it is served: no build step, nothing from elsewhere.
"""

from flexpert_workers.ui.server import UiServer, serve_ui

__all__ = ["UiServer", "serve_ui"]
