"""The truth on disk: one SQLite database a shard."""
