"""Sessions, leases, the dispatch loop, the reaper."""
