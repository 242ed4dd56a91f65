"""Engines as processes: which changes of a specification they live through."""

from dataclasses import replace

from flexpert_workers.pool.state import PoolSpec
from flexpert_workers.pool.subprocesses import Host, SubprocessEngines

SPEC = PoolSpec(uid="u", name="n", namespace="default", source="file:///nowhere", engine_threads=1, workers=2)


async def test_engines_live_on_when_the_change_is_not_about_them(tmp_path) -> None:
    engines = SubprocessEngines("127.0.0.1:1", Host(socket_dir=str(tmp_path)))
    try:
        await engines.apply(SPEC)
        (first,) = engines.pids()
        await engines.apply(replace(SPEC, workers=3, standby_workers=1, memory_per_worker_bytes=1 << 20))
        assert engines.pids() == (first,)
        await engines.apply(replace(SPEC, engine_replicas=2))
        assert engines.pids()[0] == first
        assert len(engines.pids()) == 2
        await engines.apply(replace(SPEC, max_batch_tokens=512))
        (second,) = engines.pids()
        assert second != first
    finally:
        engines.kill_all()
