"""The daemon that plans and dispatches."""

import os

# gRPC's fork handlers run in every program that uvloop starts, and crash some of them (SIGSEGV before their first
# instruction). The library reads this when it is loaded: so it stands here, before anything imports it.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
