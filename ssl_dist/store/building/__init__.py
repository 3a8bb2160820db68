"""The writing side of the store: sources of images, shards, the lock of a build, and the manifest."""
