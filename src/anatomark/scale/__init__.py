"""Many cases: shards that run anywhere, worker processes, a journal of what became of each case, and its status."""
