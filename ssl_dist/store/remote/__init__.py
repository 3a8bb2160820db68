"""A store in a bucket: its shards are fetched into a cache on this machine."""
