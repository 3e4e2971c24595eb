"""Where files lie: a folder of this machine or an object store, told apart by the address alone."""

from __future__ import annotations

from pathlib import Path

import pyarrow.fs as pa_fs


def store_of(root: str) -> tuple[pa_fs.FileSystem, str]:
    """Arrow's own file system for a folder or a URL (`s3://bucket/path`, `gs://…`), and the path in it.

    Its threads never want Python's lock. Those of a file system written in Python do, as delta-rs' for Arrow is, while
    DuckDB holds that lock to start a scan and waits for them: an update hung for good so, its stacks taken with gdb.

    Raises:
        pyarrow.ArrowInvalid: Arrow knows no such kind of store.
    """
    if "://" not in root:
        return pa_fs.LocalFileSystem(), str(Path(root).resolve())
    scheme, _, rest = root.partition("://")
    return pa_fs.FileSystem.from_uri(f"{'s3' if scheme == 's3a' else scheme}://{rest}")


def tree_at(root: str) -> pa_fs.SubTreeFileSystem:
    """What lies at `root` and below it, by paths from there: what a Delta table's log names its files by.

    Raises:
        pyarrow.ArrowInvalid: Arrow knows no such kind of store.
    """
    files, path = store_of(root)
    return pa_fs.SubTreeFileSystem(path, files)


def storage_options(root: str) -> dict[str, str] | None:
    """What deltalake is told of the store at `root` beside the environment's variables; None for a folder.

    A commit to S3 puts its log entry only where there is none ("If-None-Match"), so that of two writers of one version
    one begins anew. That is deltalake's way too; said here, no variable of the environment switches it off.
    """
    return {"aws_conditional_put": "etag"} if root.startswith(("s3://", "s3a://")) else None
