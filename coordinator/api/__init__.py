"""gRPC servicers: translate between the wire and the core, nothing else."""
