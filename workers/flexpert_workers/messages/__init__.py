"""Typed messages, one module a hop: `dispatch` engine ↔ worker, `control` pool controller ↔ worker,
`generation` ingress ↔ engine. All are MessagePack headers, followed by raw frames where arrays travel.
"""
