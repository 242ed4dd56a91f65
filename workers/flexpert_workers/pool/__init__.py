"""The pool controller: who the workers and engines are, which routing table is in force, how the next one comes about.

Deciding modules are pure (`tables`, `recovery`, `reconcile`, `predict`); `reconfigure` carries a plan out; `controller`
is the asyncio core; `service` puts gRPC in front of it. Nothing here imports Ray: `serving/` and `controller_actor`
do.
"""
