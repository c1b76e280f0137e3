"""What must hold in a policy of who reaches pods."""

from __future__ import annotations

import difflib
import ipaddress
from collections.abc import Mapping

from orchestrator.cluster_files.models.kubernetes import NetworkPolicy, Peer
from orchestrator.cluster_files.rules.bundle import Bundle
from orchestrator.cluster_files.sheet import Sheet
from orchestrator.config.problems import KeyPath
from orchestrator.errors import did_you_mean, nearest

_RAY_PORTS = {
    6379: "control store",
    8265: "dashboard",
    10001: "client",
    8080: "metrics",
    8000: "serve",
}
_NAME_LABEL, _OPERATOR = "kubernetes.io/metadata.name", "kuberay-system"


def check_policy(sheet: Sheet, document: NetworkPolicy, bundle: Bundle) -> None:
    """Report a policy that guards nothing, lets in too many, or keeps Ray from itself."""
    spec = document.spec
    labels = spec.pod_selector.match_labels
    if bundle.pods and not bundle.selects(labels):
        known = sorted({f"{key}: {value}" for pod in bundle.pods for key, value in pod.items()})
        text = ", ".join(f"{key}: {value}" for key, value in labels.items())
        hint = did_you_mean(text, known)
        sheet.report(
            ("spec", "podSelector"),
            f"the policy guards no pod of these files, none has {text or 'no labels'}{hint}",
        )
    if "Ingress" not in spec.policy_types:
        sheet.report(("spec", "policyTypes"), "what comes in is not guarded; write Ingress")
    if "Egress" in spec.policy_types and not spec.egress:
        sheet.report(
            ("spec", "policyTypes"),
            "nothing goes out, so Ray's nodes do not even find each other's names; leave Egress "
            "out, or write egress",
        )
    bare = [
        pod
        for pod in bundle.pods
        if "ray.io/node-type" in pod and not labels.items() <= pod.items()
    ]
    if bare and bundle.selects(labels) and len(bundle.policies) == 1:
        sheet.report(
            ("spec", "podSelector"),
            f"the policy leaves {len(bare)} kinds of Ray's pods unguarded, which lack the labels "
            + ", ".join(f"{key}: {value}" for key, value in labels.items()),
        )
    together = False
    for index, rule in enumerate(spec.ingress):
        path = ("spec", "ingress", index)
        if not rule.from_:
            sheet.report(path, "without `from` everybody is let in; name pods or networks")
        elif not rule.ports and not all(_is_of(peer, labels) for peer in rule.from_):
            sheet.report(
                path,
                "others are let in at every port, the metrics and the control store, too; write "
                "ports: [{port: 8265}]",
            )
        for each, peer in enumerate(rule.from_):
            here = (*path, "from", each)
            if peer.ip_block is not None:
                try:
                    network = ipaddress.ip_network(peer.ip_block.cidr)
                except ValueError as error:
                    sheet.report((*here, "ipBlock", "cidr"), f"no network: {error}")
                    continue
                if network.prefixlen == 0:
                    sheet.report((*here, "ipBlock", "cidr"), "everybody is let in; name a network")
            elif peer.pod_selector is None and peer.namespace_selector is None:
                sheet.report(here, "an empty entry lets nobody in, or everybody; name pods")
            elif peer.pod_selector is not None and peer.namespace_selector is None:
                inner = peer.pod_selector.match_labels
                together |= inner == labels and not rule.ports
                if bundle.pods and inner and not bundle.selects(inner) and inner != labels:
                    sheet.report(
                        (*here, "podSelector"),
                        "no pod of these files has these labels; they are let in for nothing",
                    )
            elif (
                peer.namespace_selector is not None
                and not (
                    peer.namespace_selector.match_labels
                    or peer.namespace_selector.match_expressions
                )
                and not (peer.pod_selector and peer.pod_selector.match_labels)
            ):
                sheet.report(
                    (*here, "namespaceSelector"), "every pod of the cluster is let in; name one"
                )
            _namespace(sheet, (*here, "namespaceSelector"), peer)
        for each, port in enumerate(rule.ports):
            if port.protocol != "TCP":
                sheet.report(
                    (*path, "ports", each, "protocol"),
                    f"Ray speaks TCP, and {port.protocol} alone is let in; leave protocol out",
                )
            if isinstance(port.port, int) and port.port not in _RAY_PORTS:
                sheet.report(
                    (*path, "ports", each, "port"),
                    f"Ray does not listen at {port.port}; its ports are "
                    + ", ".join(f"{number} ({name})" for number, name in _RAY_PORTS.items()),
                )
            elif port.port in (6379, 8080, 10001):
                sheet.report(
                    (*path, "ports", each, "port"),
                    f"others need no port {port.port} ({_RAY_PORTS[int(port.port)]}); let them "
                    "in at 8265 alone, which asks for the token",
                )
    if bundle.pods and bundle.selects(labels) and not together:
        sheet.report(
            ("spec", "ingress") if spec.ingress else ("spec",),
            "Ray's nodes speak with each other at any port, and no rule without ports lets the "
            "pods of podSelector in",
        )


def _is_of(peer: Peer, labels: Mapping[str, str]) -> bool:
    """Whether a peer is the very pods that a policy guards."""
    selector = peer.pod_selector
    return (
        peer.namespace_selector is None
        and selector is not None
        and selector.match_labels == labels
        and not selector.match_expressions
    )


def _namespace(sheet: Sheet, path: KeyPath, peer: Peer) -> None:
    """Slips in the name of KubeRay's own namespace, and in the label by which one is named."""
    labels = {} if peer.namespace_selector is None else peer.namespace_selector.match_labels
    for key, value in labels.items():
        if key != _NAME_LABEL and nearest(key, [_NAME_LABEL]):
            sheet.report(
                (*path, "matchLabels", key),
                f"no namespace has a label {key!r}; did you mean {_NAME_LABEL!r}?",
            )
        elif value != _OPERATOR and difflib.get_close_matches(value, [_OPERATOR], cutoff=0.85):
            sheet.report(
                (*path, "matchLabels", key),
                f"the operator of KubeRay is in {_OPERATOR!r}, and {value!r} is let in",
            )
