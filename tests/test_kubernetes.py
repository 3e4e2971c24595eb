"""The pod template and the chart's values are what Kubernetes and Airflow read them as: no key is unknown to either."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.settings import REPOSITORY

FOLDER = REPOSITORY / "pipeline" / "kubernetes"
generator = pytest.importorskip("airflow.providers.cncf.kubernetes.pod_generator", reason="extra `kubernetes`")


def as_kubernetes_reads(path: Path) -> tuple[Any, dict[str, Any]]:
    """The pod as the client's model, and that as plain data again: keys that Kubernetes does not know are gone."""
    from kubernetes.client import ApiClient

    pod = generator.PodGenerator.deserialize_model_file(str(path))
    return pod, ApiClient().sanitize_for_serialization(pod)


def test_kubernetes_knows_every_key_of_the_pod_template() -> None:
    _, read = as_kubernetes_reads(FOLDER / "pod.yaml")
    assert read == yaml.safe_load((FOLDER / "pod.yaml").read_text())


def test_a_misspelt_key_of_a_pod_is_found(tmp_path: Path) -> None:
    wrong = (FOLDER / "pod.yaml").read_text().replace("volumeMounts:", "volumesMounts:")
    (tmp_path / "pod.yaml").write_text(wrong)
    _, read = as_kubernetes_reads(tmp_path / "pod.yaml")
    assert read != yaml.safe_load(wrong)


def test_the_executor_makes_a_tasks_pod_of_the_template() -> None:
    template, _ = as_kubernetes_reads(FOLDER / "pod.yaml")
    made = generator.PodGenerator.construct_pod(
        dag_id="update_recommend", task_id="learn", pod_id="update-recommend-learn-x", try_number=1,
        kube_image="registry.example/evergreen:3", date=datetime(2026, 1, 5, tzinfo=UTC), args=["python", "-m", "task"],
        pod_override_object=None, base_worker_pod=template, namespace="shop", scheduler_job_id="7", run_id="r1",
    )
    (base,) = made.spec.containers
    assert (base.name, base.image, base.args) == ("base", "registry.example/evergreen:3", ["python", "-m", "task"])
    assert made.metadata.namespace == "shop" and made.metadata.annotations["task_id"] == "learn"
    assert [source.secret_ref.name for source in base.env_from] == ["evergreen"]
    assert {variable.name for variable in base.env} > {"EVERGREEN_HOME", "AIRFLOW_IS_K8S_EXECUTOR_POD"}
    mounted, there = {mount.name for mount in base.volume_mounts}, {volume.name for volume in made.spec.volumes}
    assert mounted == there == {"home", "logs", "config"}
    assert made.spec.security_context.run_as_non_root and made.spec.restart_policy == "Never"


def test_the_values_name_options_that_airflow_has_and_its_version() -> None:
    from airflow import __version__
    from airflow.configuration import conf

    values = yaml.safe_load((FOLDER / "values.yaml").read_text())
    known = {(section.lower(), name.lower()) for section, name in _options(conf)}
    given = {(section, name) for section, options in values["config"].items() for name in options}
    assert given - known == set()
    assert values["airflowVersion"] == __version__
    (pod_secret,) = as_kubernetes_reads(FOLDER / "pod.yaml")[0].spec.containers[0].env_from
    assert yaml.safe_load(values["extraEnvFrom"]) == [{"secretRef": {"name": pod_secret.secret_ref.name}}]


def _options(conf: Any) -> set[tuple[str, str]]:
    return {
        (section, name) for section, options in conf.configuration_description.items() for name in options["options"]
    }
