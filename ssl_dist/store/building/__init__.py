"""How a store is written: sources of images, shards, the manifest."""
