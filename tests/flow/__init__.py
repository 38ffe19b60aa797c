"""The whole Flow in real processes: what each endpoint does, over gRPC and HTTP."""
