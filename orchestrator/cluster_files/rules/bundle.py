"""What the documents of the checked files know of one another."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field

from orchestrator.cluster_files.models.kubernetes import (
    ConfigMap,
    Job,
    NetworkPolicy,
    PersistentVolume,
    PersistentVolumeClaim,
)
from orchestrator.cluster_files.models.pods import PodTemplate
from orchestrator.cluster_files.models.ray import (
    ClusterSpec,
    RayCluster,
    RayJob,
    TrainingRuntime,
)


@dataclass
class Bundle:
    """The manifests of one call.

    Attributes:
        claims: of storage, by name.
        volumes: storage that there is, by name.
        configs: keys of config maps, by name.
        secrets: keys of secrets that comments say how to make, by name.
        runtimes: templates of jobs.
        pods: labels of every pod template.
        claimed: names of the claims that pods mount.
        policies: that let in or out.
    """

    claims: dict[str, PersistentVolumeClaim] = field(default_factory=dict)
    volumes: dict[str, PersistentVolume] = field(default_factory=dict)
    configs: dict[str, frozenset[str]] = field(default_factory=dict)
    secrets: dict[str, set[str]] = field(default_factory=dict)
    runtimes: dict[str, TrainingRuntime] = field(default_factory=dict)
    pods: list[dict[str, str]] = field(default_factory=list)
    claimed: set[str] = field(default_factory=set)
    policies: list[NetworkPolicy] = field(default_factory=list)

    def add(self, document: object) -> None:
        """Note a manifest."""
        if isinstance(document, PersistentVolumeClaim):
            self.claims[document.metadata.name] = document
        elif isinstance(document, PersistentVolume):
            self.volumes[document.metadata.name] = document
        elif isinstance(document, ConfigMap):
            self.configs[document.metadata.name] = frozenset(document.data)
        elif isinstance(document, NetworkPolicy):
            self.policies.append(document)
        elif isinstance(document, TrainingRuntime):
            self.runtimes[document.metadata.name] = document
            for job in document.spec.template.spec.replicated_jobs:
                self._claims_of(job.template.spec.template)
        elif isinstance(document, Job):
            self._claims_of(document.spec.template)
        elif isinstance(document, RayCluster):
            self._add_pods(document.metadata.name, document.spec)
        elif isinstance(document, RayJob):
            self._add_pods("", document.spec.ray_cluster_spec)
            if document.spec.submitter_pod_template is not None:
                self.pods.append(dict(document.spec.submitter_pod_template.metadata.labels))

    def _add_pods(self, name: str, spec: ClusterSpec) -> None:
        head, groups = spec.head_group_spec, spec.worker_group_specs
        for template in (head.template, *(group.template for group in groups)):
            self._claims_of(template)
        made = {"ray.io/cluster": name} if name else {}
        self.pods.append(_labels(head.template, {**made, "ray.io/node-type": "head"}))
        self.pods += [
            _labels(group.template, {**made, "ray.io/node-type": "worker"}) for group in groups
        ]

    def _claims_of(self, template: PodTemplate) -> None:
        claims = (volume.persistent_volume_claim for volume in template.spec.volumes)
        self.claimed |= {claim.claim_name for claim in claims if claim is not None}

    def add_comments(self, lines: Iterable[str]) -> None:
        """Note the secrets that comments say how to make: ``kubectl create secret generic …``."""
        text = "\n".join(lines).replace("\\\n", " ")
        for command in re.findall(r"kubectl create secret generic (.+)", text):
            try:
                name, *options = shlex.split(command)
            except ValueError:
                continue
            keys = self.secrets.setdefault(name, set())
            for option in options:
                kind, _, value = option.partition("=")
                if kind == "--from-literal" or (kind == "--from-file" and "=" in value):
                    keys.add(value.partition("=")[0])
                elif kind == "--from-file":
                    keys.add(value.rpartition("/")[2])

    def selects(self, labels: dict[str, str]) -> bool:
        """Whether any pod of the files has all of these labels."""
        return any(labels.items() <= pod.items() for pod in self.pods)


def _labels(template: PodTemplate, made: dict[str, str]) -> dict[str, str]:
    return {"ray.io/is-ray-node": "yes", **made, **template.metadata.labels}
