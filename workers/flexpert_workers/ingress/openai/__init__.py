"""OpenAI's HTTP interface: `/v1/models`, `/v1/completions`, `/v1/chat/completions`. Mounted by `http.py`.

A request passes `exchange` (the connection) → `asks` (what is asked, or the parameter that is wrong) → `endpoints`
(the streams) → `bodies` (what is answered). `errors` has the form of what goes wrong.
"""

from flexpert_workers.ingress.openai.endpoints import routes

__all__ = ["routes"]
