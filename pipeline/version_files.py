"""The files of a model version in MLflow's artifact stores: how much they take, and their removal.

MLflow has a call to delete a version's entry and none to delete its files (`mlflow gc` needs the database and deletes
whole runs). Its artifact repositories can delete: in folders, on its server and in object storage alike.
"""

from __future__ import annotations

from typing import Any


def folder_bytes(address: str, folder: str, tracking_uri: str) -> int:
    """The sizes of all files below `folder` of the artifact store at `address`; 0 where it is not there."""
    store, total, folders = _store(address, tracking_uri), 0, [folder]
    while folders:
        for file in store.list_artifacts(folders.pop() or None):
            if file.is_dir:
                folders.append(file.path)
            else:
                total += int(file.file_size or 0)
    return total


def remove_folder(address: str, folder: str, tracking_uri: str) -> None:
    """Removes what is below `folder` of the artifact store at `address`; nothing where it is gone already."""
    store = _store(address, tracking_uri)
    for file in store.list_artifacts(folder or None):
        store.delete_artifacts(file.path)


def _store(address: str, tracking_uri: str) -> Any:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(address, tracking_uri)
