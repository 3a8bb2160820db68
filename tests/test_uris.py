"""URIs: joining and splitting are inverse, and messages never show a key."""

from __future__ import annotations

import pytest

from ssl_dist.errors import ConfigError
from ssl_dist.uris import join_uri, split_uri


@pytest.mark.parametrize(
    "uri", ["s3://bucket/a/b", "s3://bucket", "file:///a", "s3://k:s@bucket/a?region=x&scheme=http"]
)
def test_split_is_the_inverse_of_join(uri: str) -> None:
    assert split_uri(join_uri(uri, "run-1")) == (uri, "run-1")
    assert join_uri(f"{uri}/", "run") == join_uri(uri, "run") or "?" in uri


def test_a_uri_that_cannot_be_parsed_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"s3://\[x/runs is not a URI"):
        join_uri("s3://[x/runs", "run")
    with pytest.raises(ConfigError) as refused:
        join_uri("s3://key:SECRET@[x/runs", "run")
    assert "SECRET" not in str(refused.value)
