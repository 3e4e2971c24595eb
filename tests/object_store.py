"""An object store for tests: moto's S3 in a process of its own, which keeps what it is given in memory.

It answers one request at a time. moto looks whether a key is there and writes it in two steps; with threads two
writers could both be told that theirs was the first, which S3 never does (its conditional writes are atomic).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

BUCKET = "shop"


@contextmanager
def object_store(host: str = "127.0.0.1") -> Iterator[dict[str, str]]:
    """The environment of a running store with the bucket BUCKET; it ends with the block."""
    process = subprocess.Popen(
        [sys.executable, __file__, host], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        variables = {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1",  # deltalake's name and Arrow's and boto3's
        }
        client(variables).create_bucket(Bucket=BUCKET)
        yield variables
    finally:
        process.terminate()
        process.wait(10)


def client(variables: Mapping[str, str]):
    """A plain client of the store, for what a shop does itself: laying files, listing."""
    import boto3

    return boto3.client(
        "s3", endpoint_url=variables["AWS_ENDPOINT_URL"], region_name=variables["AWS_REGION"],
        aws_access_key_id=variables["AWS_ACCESS_KEY_ID"], aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
    )


def keys(variables: Mapping[str, str], prefix: str) -> list[str]:
    """All keys of the bucket that begin with `prefix`."""
    pages = client(variables).get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    return [entry["Key"] for page in pages for entry in page.get("Contents", ())]


def _serve() -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    server = make_server(sys.argv[1], 0, DomainDispatcherApplication(create_backend_app), threaded=False)
    print(server.port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    _serve()
