"""Remote stores: read a store at a URI (``s3://bucket/store``) through a cache on this machine's disk."""

from ssl_dist.store.remote.bucket import Bucket, manifest_at
from ssl_dist.store.remote.cache import DEFAULT_CACHE_GB, Cache, cache_folder
from ssl_dist.store.remote.fetcher import Fetcher

__all__ = ["DEFAULT_CACHE_GB", "Bucket", "Cache", "Fetcher", "cache_folder", "manifest_at"]
