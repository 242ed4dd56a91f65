"""All that runs inside a pool: expert workers, dispatch, engines, the pool controller, the ingress."""
