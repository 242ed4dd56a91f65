"""Typed messages, one module a hop: `dispatch` engine ↔ worker, `control` pool controller ↔ worker,
`generation` ingress ↔ engine. All are MessagePack headers, followed by raw frames where arrays travel.
"""

import msgspec

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding raises for bytes that are no message: text that is no UTF-8 and nesting without end are no
`MsgspecError`. Whoever reads from a socket catches all of them.
"""
