"""deploy/kubernetes: every object is one that Kubernetes takes, and says of tweed what is true."""

import json
import os
from functools import cache
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tweed.agent import prepare
from tweed.config import load
from tweed.lab.stores.kube import RULES
from tweed.wire.flannel import parse_network

DEPLOY = Path(__file__).parents[1] / "deploy" / "kubernetes"
OVERLAYS = ["base", "overlays/instead-of-flannel", "overlays/beside-flannel"]
VERSIONS = ["1.25.0", kubernetes_validate.latest_version()]


def documents(path):
    return [document for document in yaml.load_all(path.read_text(), yaml.CSafeLoader) if document is not None]


def render(directory):
    """What `kubectl kustomize DIRECTORY` gives, as far as these files use it: resources, images, JSON patches and deletions."""
    (kustomization,) = documents(directory / "kustomization.yaml")
    assert kustomization.keys() <= {"apiVersion", "kind", "resources", "images", "patches"}
    objects = []
    for name in kustomization["resources"]:
        path = directory / name
        objects += render(path.resolve()) if path.is_dir() else documents(path)
    for patch in kustomization.get("patches", []):
        hit = [o for o in objects if o["kind"] == patch["target"]["kind"] and o["metadata"]["name"] == patch["target"]["name"]]
        assert len(hit) == 1, patch
        operations = yaml.safe_load(patch["patch"])
        if isinstance(operations, dict):
            assert operations.pop("$patch") == "delete" and operations["kind"] == hit[0]["kind"]
            objects.remove(hit[0])
            continue
        for operation in operations:
            apply(hit[0], **operation)
    for image in kustomization.get("images", []):
        for container in containers(objects):
            if container["image"] == image["name"]:
                container["image"] = f"{image['name']}:{image['newTag']}"
    return objects


def apply(target, op, path, value):
    """RFC 6902, two operations of it."""
    *parents, last = path.strip("/").split("/")
    for name in parents:
        target = target[int(name) if isinstance(target, list) else name]
    if last == "-":
        assert op == "add"
        target.append(value)
    else:
        assert op == "add" or last in target, f"{path}: a replace needs something to replace"
        target[last] = value


def containers(objects):
    return [c for o in objects if o["kind"] == "DaemonSet" for kind in ("initContainers", "containers") for c in o["spec"]["template"]["spec"][kind]]


def one(objects, kind):
    (found,) = [o for o in objects if o["kind"] == kind]
    return found


@cache
def is_taken(text, version):
    """Each object once: overlays have most of theirs from the base, and the validator reads all schemas for each."""
    kubernetes_validate.validate(json.loads(text), version, strict=True)


@pytest.fixture(scope="module", params=OVERLAYS)
def objects(request):
    return render(DEPLOY / request.param)


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_every_object(objects, version):
    for each in objects:
        is_taken(json.dumps(each), version)


def test_every_mount_has_its_volume_and_every_volume_its_mount(objects):
    spec = one(objects, "DaemonSet")["spec"]["template"]["spec"]
    volumes = {volume["name"] for volume in spec["volumes"]}
    assert volumes == {mount["name"] for container in containers(objects) for mount in container["volumeMounts"]}
    assert all(container["image"] == "tweed:0.1.0" for container in containers(objects))


def test_names_and_namespaces_belong_together(objects):
    daemonset, account, binding = (one(objects, kind) for kind in ("DaemonSet", "ServiceAccount", "ClusterRoleBinding"))
    namespace = daemonset["metadata"]["namespace"]
    assert daemonset["spec"]["template"]["spec"]["serviceAccountName"] == account["metadata"]["name"]
    assert account["metadata"]["namespace"] == namespace
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account["metadata"]["name"], "namespace": namespace}]
    assert binding["roleRef"]["name"] == one(objects, "ClusterRole")["metadata"]["name"]
    template = daemonset["spec"]["template"]["metadata"]["labels"]
    assert daemonset["spec"]["selector"]["matchLabels"].items() <= template.items()


def test_the_agent_has_two_capabilities_and_one_init_container_is_privileged(objects):
    by_name = {container["name"]: container["securityContext"] for container in containers(objects)}
    assert by_name["tweed"]["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]}
    assert by_name["tweed"]["readOnlyRootFilesystem"] is True and by_name["tweed"]["allowPrivilegeEscalation"] is False
    assert [name for name, context in by_name.items() if context.get("privileged")] == ["prepare"]
    spec = one(objects, "DaemonSet")["spec"]["template"]["spec"]
    assert [container["name"] for container in spec["initContainers"]] == ["prepare", "install-cni"]


def test_the_role_is_what_the_lab_and_the_tests_get_along_with(objects):
    rules = one(objects, "ClusterRole")["rules"]
    assert {(verb, resource) for rule in rules for verb in rule["verbs"] for resource in rule["resources"]} == set(RULES)
    assert all(rule["apiGroups"] == [""] for rule in rules)


def test_commands_are_tweeds_and_probes_ask_where_the_agent_answers(objects):
    by_name = {container["name"]: container for container in containers(objects)}
    agent = by_name["tweed"]
    assert agent["command"] == ["tweed", "agent"]
    settings, warnings = load([f"--config={os.devnull}", *agent["args"]], {"NODE_NAME": "n1"}, "host")
    assert (settings.store, settings.node_name, settings.pod, warnings) == ("kube", "n1", None, [])
    assert [e["name"] for e in agent["env"]] == ["NODE_NAME"]
    mounts = {mount["mountPath"]: mount for mount in agent["volumeMounts"]}
    assert {str(settings.net_config_path.parent), str(settings.run_dir), str(settings.state_dir), str(settings.subnet_file.parent)} <= mounts.keys()
    for probe, path in (("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        assert agent[probe]["httpGet"] == {"host": ".".join(map(str, settings.healthz_ip)), "port": settings.healthz_port, "path": path}
    assert by_name["prepare"]["command"] == ["python3", "-m", prepare.__name__]
    assert load([f"--config={os.devnull}", *by_name["prepare"]["args"]], {}, "host")[0].net_config_path == settings.net_config_path
    done = by_name["install-cni"]
    assert (done["command"], done["args"][:2]) == (["tweed"], ["cni", "install"])


def test_the_network_configuration_is_one():
    network = parse_network(one(render(DEPLOY / "base"), "ConfigMap")["data"]["net-conf.json"])
    assert (str(network.network), network.backend, network.backend_given) == ("10.244.0.0/16", "vxlan", True)


def test_beside_flannel_a_node_has_one_of_the_two():
    """The patch is for flannel's own DaemonSet: a node's label puts it on one side or the other."""
    objects = render(DEPLOY / "overlays/beside-flannel")
    spec = one(objects, "DaemonSet")["spec"]["template"]["spec"]
    assert spec["nodeSelector"] == {"kubernetes.io/os": "linux", "tweed": "true"}
    (patch,) = documents(DEPLOY / "overlays/beside-flannel/flannel-patch.yaml")
    affinity = patch["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    expressions = affinity["nodeSelectorTerms"][0]["matchExpressions"]
    assert {"key": "tweed", "operator": "NotIn", "values": ["true"]} in expressions
    flannel = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "kube-flannel-ds"},
        "spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}], **patch["spec"]["template"]["spec"]}},
        },
    }
    kubernetes_validate.validate(flannel, VERSIONS[-1], strict=True)
    assert spec["volumes"][0] == {"name": "config", "configMap": {"name": "kube-flannel-cfg"}}
    assert "--flannel" in spec["initContainers"][1]["args"]
