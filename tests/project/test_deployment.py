"""cluster.yaml, docker/ and kubernetes/ against the schemas and linters of those who read them."""

from __future__ import annotations

import datetime
import functools
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private import util as launcher

from pipeline import config

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
MANIFESTS = sorted(p.name for p in (ROOT / "kubernetes").glob("*.yaml"))
Node = dict[str, Any]


def pinned(package: str) -> str:
    match = re.search(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert match, f"constraints.txt does not pin {package}"
    return match[1]


def valid(instance: Node, schema: Node) -> None:
    """Raise ValidationError where it is not. (jsonschema.validate checks the schema too, for many seconds if large.)"""
    jsonschema.Draft202012Validator(schema).validate(instance)


IMAGE = f"example/motion-curation:{pinned('ray')}"


# --- cluster.yaml ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Node:
    configuration: Node = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return configuration


def test_the_launcher_takes_cluster_yaml(cluster: Node) -> None:
    launcher.validate_config(launcher.prepare_config(cluster))
    with pytest.raises(jsonschema.ValidationError):
        launcher.validate_config(launcher.prepare_config({**cluster, "idle_timeout": 10}))


def test_the_head_is_on_demand_without_tasks_and_workers_are_spot_from_none(cluster: Node) -> None:
    types = dict(cluster["available_node_types"])
    head = types.pop(cluster["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"], "a head that goes away takes the run with it"
    assert any(t["node_config"]["InstanceType"].startswith(("p", "g")) for t in types.values()), "no worker has a GPU"
    for name, worker in types.items():
        assert worker["min_workers"] == 0 < worker["max_workers"], name
        assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}, name
    assert sum(t["max_workers"] for t in types.values()) <= cluster["max_workers"]


def test_the_cluster_has_the_image_memory_disk_and_token_it_needs(cluster: Node) -> None:
    docker, options = cluster["docker"], " ".join(cluster["docker"]["run_options"])
    assert docker["image"] == IMAGE
    assert int(re.findall(r"--shm-size=(\d+)g", options)[0]) >= 32
    assert "RAY_AUTH_MODE=token" in options
    assert list(cluster["file_mounts"]) == ["/home/ray/.ray/auth_token"]
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        start = cluster[commands][-1]
        assert "--object-spilling-directory=/mnt/nvme/" in start, f"{commands}: spills to the root disk"
        assert "/mnt/nvme:/mnt/nvme" in options
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][-1]
    for command in cluster["initialization_commands"]:
        subprocess.run(["bash", "-n", "-c", command], check=True)


# --- the image -------------------------------------------------------------------------------------------------------


def hadolint(text: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.prefix) / "bin" / "hadolint"), "--no-color", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    result = hadolint(DOCKERFILE.read_text())
    assert result.returncode == 0, result.stdout
    worse = hadolint(DOCKERFILE.read_text().replace("13.0.2-base-ubuntu24.04", "latest") + "RUN cd /tmp\n")
    assert {"DL3007", "DL3003"} <= set(re.findall(r"DL\d+", worse.stdout)), "hadolint checks nothing"


def instructions() -> list[tuple[str, str]]:
    """Every instruction and what it says, continued lines joined."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


def test_the_image_is_pinned_without_root_and_without_weights() -> None:
    steps = instructions()
    bases = [rest for name, rest in steps if name == "FROM"]
    assert all(re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu24\.04", base) for base in bases), bases
    users = [rest for name, rest in steps if name == "USER"]
    assert users, "the image runs as root"
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]), "Kubernetes can tell by number alone that it is not root"
    assert not [rest for name, rest in steps if name == "ADD"]
    assert ("ARG", f"RAY_VERSION={pinned('ray')}") in steps, "by default another Ray than constraints.txt"
    text = DOCKERFILE.read_text()
    assert text.count("--constraint constraints.txt") == 2
    assert not re.search(r"index-url|https?://|huggingface-cli|hf download|snapshot_download", text)


def test_the_dockerfiles_shell_does_what_it_says(tmp_path: Path) -> None:
    """The dependencies it reads out of pyproject.toml, and the pin that the build argument changes."""
    command = next(rest for name, rest in instructions() if name == "RUN" and "tomllib" in rest)
    script = next(word for word in shlex.split(command) if word.startswith("import tomllib"))
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert done.stdout.splitlines() == dependencies
    pins = tmp_path / "constraints.txt"
    pins.write_text((ROOT / "constraints.txt").read_text())
    change = command.split("&&")[0]
    subprocess.run(["bash", "-c", change], cwd=tmp_path, check=True, env={**os.environ, "RAY_VERSION": "9.9.9"})
    before, after = (ROOT / "constraints.txt").read_text().splitlines(), pins.read_text().splitlines()
    assert [a for a, b in zip(after, before, strict=True) if a != b] == ["ray==9.9.9"]


def test_what_is_sent_to_the_build_holds_no_weights_and_all_that_is_installed() -> None:
    rules = [r for r in (ROOT / ".dockerignore").read_text().splitlines() if r and not r.startswith("#")]
    assert rules[0] == "*", "what is not named is sent"
    assert {"**/*.safetensors", "**/*.pth"} <= set(rules)
    sent = {rule[1:] for rule in rules if rule.startswith("!")}
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    assert {pattern.removesuffix("*") for pattern in packages["include"]} | {
        "pyproject.toml",
        "constraints.txt",
        "README.md",
        "LICENSE",
    } == sent


# --- kubernetes ------------------------------------------------------------------------------------------------------


def documents(name: str) -> list[Node]:
    nodes = list(yaml.safe_load_all((ROOT / "kubernetes" / name).read_text()))
    for each in list(nodes):
        if each["kind"] == "ConfigMap":  # the RayJob that the CronJob makes lies in one
            nodes += [yaml.safe_load(text) for key, text in each["data"].items() if key.endswith(".yaml")]
    return nodes


def every(kind: str) -> list[Node]:
    return [d for name in MANIFESTS for d in documents(name) if d["kind"] == kind]


def strict(schema: Any) -> Any:
    """A CRD's schema that refuses fields it does not name, as the API server does with --validate=strict."""
    if isinstance(schema, list):
        return [strict(s) for s in schema]
    if not isinstance(schema, dict):
        return schema
    strict_schema = {k: strict(v) for k, v in schema.items()}
    if strict_schema.pop("x-kubernetes-int-or-string", False):
        strict_schema.pop("type", None)
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        strict_schema.setdefault("additionalProperties", False)
    return strict_schema


@functools.cache
def custom(kind: str) -> Node:
    """The schema of a custom resource's spec, version v1, from the folder that KUBERAY_SCHEMAS names."""
    folder = os.environ.get("KUBERAY_SCHEMAS")
    if not folder or not Path(folder).is_dir():
        pytest.skip("KUBERAY_SCHEMAS names no folder with KubeRay's ray.io_rayjobs.yaml and ray.io_raycronjobs.yaml")
    definition = yaml.load((Path(folder) / f"ray.io_{kind.lower()}s.yaml").read_text(), yaml.CSafeLoader)  # large
    (version,) = (v for v in definition["spec"]["versions"] if v["name"] == "v1")
    spec: Node = strict(version["schema"]["openAPIV3Schema"]["properties"]["spec"])
    return spec


def test_ray_jobs_and_clusters_are_what_kuberay_takes() -> None:
    jobs, spec = every("RayJob"), custom("RayJob")
    assert len(jobs) == 2
    for job in jobs:
        valid(job["spec"], spec)
    for each in every("RayCluster"):
        valid(each["spec"], spec["properties"]["rayClusterSpec"])
    wrong = {**jobs[0]["spec"], "rayClusterSpec": {**jobs[0]["spec"]["rayClusterSpec"], "maxWorkers": 3}}
    with pytest.raises(jsonschema.ValidationError, match="maxWorkers"):
        valid(wrong, spec)


def test_the_alpha_ray_cron_job_is_what_kuberay_takes_and_says_that_it_is_alpha() -> None:
    (job,) = every("RayCronJob")
    valid(job["spec"], custom("RayCronJob"))
    assert (ROOT / "kubernetes" / "nightly-raycronjob.yaml").read_text().startswith("# ALPHA")


def test_the_cron_jobs_pod_is_a_pod() -> None:
    (job,) = every("CronJob")
    valid(job["spec"]["jobTemplate"]["spec"]["template"], custom("RayJob")["properties"]["submitterPodTemplate"])


def shape(required: dict[str, Any], **optional: Any) -> Node:
    return {
        "type": "object",
        "required": list(required),
        "properties": {**required, **optional},
        "additionalProperties": False,
    }


TEXT, COUNT, TEXTS = (
    {"type": "string"},
    {"type": "integer", "minimum": 0},
    {"type": "array", "items": {"type": "string"}},
)
NAMED = shape({"name": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}}, labels={"type": "object"})
JOB = shape({"template": {"type": "object"}}, backoffLimit=COUNT, activeDeadlineSeconds=COUNT)
POLICY = {"enum": ["Allow", "Forbid", "Replace"]}
BUILT_IN = {  # what the API of Kubernetes 1.27 and later asks of these kinds, as far as they are used here
    ("v1", "ServiceAccount"): {},
    ("v1", "ConfigMap"): {"data": {"type": "object", "additionalProperties": TEXT}},
    ("rbac.authorization.k8s.io/v1", "Role"): {
        "rules": {"type": "array", "items": shape({"apiGroups": TEXTS, "resources": TEXTS, "verbs": TEXTS})}
    },
    ("rbac.authorization.k8s.io/v1", "RoleBinding"): {
        "roleRef": shape({"apiGroup": TEXT, "kind": TEXT, "name": TEXT}),
        "subjects": {"type": "array", "items": shape({"kind": TEXT, "name": TEXT})},
    },
    ("batch/v1", "CronJob"): {
        "spec": shape(
            {"schedule": TEXT, "jobTemplate": shape({"spec": JOB}), "concurrencyPolicy": POLICY},
            timeZone=TEXT,
            startingDeadlineSeconds=COUNT,
            successfulJobsHistoryLimit=COUNT,
            failedJobsHistoryLimit=COUNT,
        )
    },
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_document_is_of_a_known_kind_and_has_the_fields_that_it_must_and_may_have(name: str) -> None:
    for each in yaml.safe_load_all((ROOT / "kubernetes" / name).read_text()):
        key = (each["apiVersion"], each["kind"])
        if key in BUILT_IN:
            head = {"apiVersion": TEXT, "kind": TEXT, "metadata": NAMED}
            valid(each, shape({**head, **BUILT_IN[key]}))
        else:
            assert key in {("ray.io/v1", kind) for kind in ("RayCluster", "RayJob", "RayCronJob")}
            assert set(each) == {"apiVersion", "kind", "metadata", "spec"}


def clusters() -> list[Node]:
    specs = [each["spec"] for each in every("RayCluster")]
    specs += [each["spec"]["rayClusterSpec"] for each in every("RayJob")]
    return specs + [each["spec"]["jobTemplate"]["rayClusterSpec"] for each in every("RayCronJob")]


def pods(node: Any) -> Iterator[Node]:
    """Every pod's spec in a document."""
    if isinstance(node, dict):
        if "containers" in node:
            yield node
        for value in node.values():
            yield from pods(value)
    elif isinstance(node, list):
        for value in node:
            yield from pods(value)


def test_all_manifests_have_one_cluster_whose_gpu_workers_start_from_none() -> None:
    specs = clusters()
    assert len(specs) == 4
    assert all(each == specs[0] for each in specs), "the copies of the cluster's spec differ"
    assert specs[0]["rayVersion"] == pinned("ray")
    assert specs[0]["authOptions"] == {"mode": "token"}
    assert specs[0]["enableInTreeAutoscaling"]
    assert specs[0]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (group,) = specs[0]["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == 0 < group["maxReplicas"]
    (worker,) = group["template"]["spec"]["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_pods_run_our_image_without_root_with_resources_and_secrets_by_reference() -> None:
    all_pods = [pod for name in MANIFESTS for each in documents(name) for pod in pods(each)]
    assert len(all_pods) == 4 * 2 + 3 + 1
    for pod in all_pods:
        assert pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            assert container["image"] == IMAGE
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            for variable in container.get("env", []):
                secret = re.search("TOKEN|SECRET|KEY|PASSWORD", variable["name"])
                assert not secret or set(variable["valueFrom"]) == {"secretKeyRef"}, f"{variable['name']} in the open"
        named = {volume["name"] for volume in pod.get("volumes", [])}
        assert {m["name"] for c in pod["containers"] for m in c.get("volumeMounts", [])} <= named
    assert not every("Secret")


def test_accounts_exist_and_the_nightly_one_may_only_create_ray_jobs() -> None:
    accounts = {each["metadata"]["name"] for each in every("ServiceAccount")}
    used = {pod["serviceAccountName"] for name in MANIFESTS for d in documents(name) for pod in pods(d)
            if "serviceAccountName" in pod}  # fmt: skip
    assert used == accounts
    (role,), (binding,) = every("Role"), every("RoleBinding")
    assert role["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create"]}]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert [s["name"] for s in binding["subjects"]] == ["motion-curation-nightly"]


def test_the_nightly_cron_job_is_one_at_a_time() -> None:
    (job,) = every("CronJob")
    assert job["spec"]["concurrencyPolicy"] == "Forbid"
    (alpha,) = every("RayCronJob")
    assert (job["spec"]["schedule"], job["spec"]["timeZone"]) == (alpha["spec"]["schedule"], alpha["spec"]["timeZone"])


def commands() -> list[str]:
    entrypoints = [each["spec"]["entrypoint"] for each in every("RayJob")]
    entrypoints += [each["spec"]["jobTemplate"]["entrypoint"] for each in every("RayCronJob")]
    (line,) = (line for line in (ROOT / "docker" / "crontab").read_text().splitlines() if "python -m" in line)
    return [*entrypoints, line[line.index("python -m") : line.index(">>")]]


@pytest.mark.parametrize("command", commands(), ids=lambda c: c.split()[2])
def test_every_command_names_a_recipe_and_keys_that_exist(command: str) -> None:
    words = shlex.split(command)
    pairs = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    config.load(words[words.index("--config") + 1], dict(pair.split("=", 1) for pair in pairs))


# --- the script that makes tonight's RayJob ---------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[HTTPServer, list[tuple[str, str, Node]]]]:
    """An API server that keeps what it is asked and answers with ``server.answers``, one after the other."""
    asked: list[tuple[str, str, Node]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, self.headers["Authorization"], body))
            self.send_response(self.server.answers.pop(0))  # type: ignore[attr-defined]
            self.end_headers()
            self.wfile.write(b'{"message": "as it is"}')

        def log_message(self, *_: Any) -> None:
            pass

    api = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=api.serve_forever, daemon=True).start()
    yield api, asked
    api.shutdown()
    api.server_close()


def test_a_night_is_one_ray_job_however_often_it_is_submitted(
    server: tuple[HTTPServer, list[tuple[str, str, Node]]], tmp_path: Path
) -> None:
    (config_map,) = every("ConfigMap")
    for name, text in config_map["data"].items():
        (tmp_path / name).write_text(text)
    (tmp_path / "token").write_text("the-token")
    (tmp_path / "namespace").write_text("curation")
    api, asked = server
    api.answers = [201, 409, 403]  # type: ignore[attr-defined]
    environment = {**os.environ, "ACCOUNT": str(tmp_path), "SERVER": f"http://127.0.0.1:{api.server_port}"}
    command = [sys.executable, str(tmp_path / "submit.py"), str(tmp_path / "rayjob.yaml")]
    first, again, denied = (
        subprocess.run(command, env=environment, capture_output=True, text=True, check=False) for _ in range(3)
    )
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("created nightly-20")
    assert again.returncode == 0
    assert "is there already" in again.stdout
    assert denied.returncode == 1
    assert "403" in denied.stderr
    assert "the-token" not in first.stdout + denied.stderr
    path, authorization, body = asked[0]
    assert path == "/apis/ray.io/v1/namespaces/curation/rayjobs"
    assert authorization == "Bearer the-token"
    today = datetime.datetime.now(datetime.UTC).date()
    assert body["metadata"]["name"] in {f"nightly-{today - datetime.timedelta(days=d)}" for d in (0, 1)}
    assert body["spec"]["entrypoint"].startswith("python -m jobs.nightly --config ")
