"""What packaging/check asks of manifests and of the chart.

    check.py FAIRWAY        the program that knows whether a document is good, or nothing

Everything wrong is printed, with its place; the exit code is 1 then.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import kubernetes_validate
import yaml
from openapi_schema_validator import OAS30Validator

PACKAGING = Path(__file__).resolve().parent
CHART = PACKAGING / "helm/fairway"
# The newest that is known, and the oldest that is still somewhere.
VERSIONS = [kubernetes_validate.latest_version(), "1.29.0"]

wrong = 0


def complain(place, what):
    global wrong
    wrong += 1
    print(f"  {place}: {what}")


def objects(text):
    return [each for each in yaml.safe_load_all(text) if each]


def called(each):
    return f"{each['kind']} {each['metadata']['name']}"


# Objects ---------------------------------------------------------------------------------------------------


def validate(place, each):
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(each, version, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            # Of another project's kinds.
            if not each["apiVersion"].startswith("monitoring.coreos.com/"):
                complain(place, f"{called(each)}: {version} does not know it")
        except kubernetes_validate.ValidationError as error:
            where = ".".join(str(step) for step in error.path)
            complain(place, f"{called(each)}: {version}: {where}: {error.message}")


def check_document(place, each, fairway):
    if not fairway:
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "fairway.yaml"
        file.write_text(each["data"]["fairway.yaml"])
        # What a Pod finds when it runs in a cluster.
        ran = subprocess.run([fairway, "check", "--config", file], capture_output=True, text=True)
        said = (ran.stdout + ran.stderr).strip().replace(folder + "/", "")
        if ran.returncode:
            complain(place, f"{called(each)}: {said}")
        else:
            print(f"  {place}: {called(each)}: {said.splitlines()[0]}")


def check_workload(place, each):
    """What no schema says."""
    spec = each["spec"]["template"]["spec"]
    labels = each["spec"]["template"]["metadata"]["labels"]
    chosen = each["spec"]["selector"]["matchLabels"]
    if not chosen.items() <= labels.items():
        complain(place, f"{called(each)}: its selector does not choose its Pods")
    volumes = {volume["name"] for volume in spec["volumes"]}
    for container in spec["containers"]:
        for mount in container["volumeMounts"]:
            if mount["name"] not in volumes:
                complain(place, f"{called(each)}: no volume {mount['name']}")
        ports = {port["name"] for port in container["ports"]}
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"]:
            if container[probe]["httpGet"]["port"] not in ports:
                complain(place, f"{called(each)}: {probe} asks at a port that is not there")


def drain_timeout(document):
    text = (document.get("shutdown") or {}).get("drainTimeout", "30s")
    factors = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
    return sum(float(count) * factors[unit] for count, unit in re.findall(r"([0-9]+)(ms|s|m|h)", text))


def check_grace(place, workload, document):
    grace = workload["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    # What is announced is taken back before: `withdrawDelay`.
    if grace < drain_timeout(document) + 5:
        complain(place, f"{called(workload)}: is killed while it drains, after {grace} s")


# Kinds of our own -------------------------------------------------------------------------------------------

FORBIDDEN = {
    "$ref", "definitions", "dependencies", "deprecated", "discriminator", "id", "patternProperties",
    "readOnly", "writeOnly", "xml",
}
TYPES = {"array", "boolean", "integer", "number", "object", "string"}


def check_schema(place, schema, root=False):
    """Kubernetes' rules of structural schemas, which the API server applies to kinds of one's own."""
    for key in FORBIDDEN & schema.keys():
        complain(place, f"`{key}` is not allowed")
    for key in ["allOf", "anyOf", "oneOf", "not"]:
        if key in schema:
            complain(place, f"`{key}`: write it without, this check does not know it")
    if schema.get("x-kubernetes-int-or-string") or schema.get("x-kubernetes-preserve-unknown-fields"):
        return
    kind = schema.get("type")
    if kind not in TYPES:
        complain(place, f"type {kind!r}")
        return
    if root and kind != "object":
        complain(place, "the root is an object")
    if schema.get("uniqueItems"):
        complain(place, "`uniqueItems` is not allowed")
    if "properties" in schema and "additionalProperties" in schema:
        complain(place, "`properties` and `additionalProperties` exclude each other")
    if schema.get("additionalProperties") is False:
        complain(place, "`additionalProperties: false` is not allowed")
    for name in schema.get("required", []):
        if name not in schema.get("properties", {}):
            complain(place, f"`{name}` is required, and not there")
    if (kind == "array") != ("items" in schema):
        complain(place, "arrays, and no others, have `items`")
    if "pattern" in schema:
        try:
            re.compile(schema["pattern"])
        except re.error as error:
            complain(place, f"pattern: {error}")
    for bound in ["minimum", "maximum"]:
        if bound in schema and kind == "integer" and "format" not in schema and not -(2**31) <= schema[bound] < 2**63:
            complain(place, f"{bound} {schema[bound]} is no integer")
    if "default" in schema:
        if root:
            complain(place, "the root has no default")
        for error in OAS30Validator(schema).iter_errors(schema["default"]):
            complain(place, f"default: {error.message}")
    for name, inner in schema.get("properties", {}).items():
        check_schema(f"{place}.{name}", inner)
    for key in ["items", "additionalProperties"]:
        if isinstance(schema.get(key), dict):
            check_schema(f"{place}.{key}", schema[key])


def property_at(schema, path):
    for step in path.strip(".").split("."):
        schema = schema.get("properties", {}).get(step)
        if schema is None:
            return None
    return schema


def check_kind(place, each):
    spec = each["spec"]
    names = spec["names"]
    if each["metadata"]["name"] != f"{names['plural']}.{spec['group']}":
        complain(place, f"{called(each)}: its name is not plural and group")
    if names["plural"] != names["plural"].lower() or names["singular"] != names["kind"].lower():
        complain(place, f"{called(each)}: names")
    if sum(version["storage"] for version in spec["versions"]) != 1:
        complain(place, f"{called(each)}: one version is stored")
    for version in spec["versions"]:
        schema = version["schema"]["openAPIV3Schema"]
        where = f"{place}: {names['kind']} {version['name']}"
        OAS30Validator.check_schema(schema)
        check_schema(where, schema, root=True)
        if "status" in version.get("subresources", {}) and "status" not in schema["properties"]:
            complain(where, "a status that its schema does not know would be thrown away")
        for column in version.get("additionalPrinterColumns", []):
            path = column["jsonPath"]
            if not path.startswith(".metadata.") and property_at(schema, path) is None:
                complain(where, f"column {column['name']}: there is no {path}")


# The chart --------------------------------------------------------------------------------------------------


class Engine:
    """Helm's own code, as its command or as a library."""

    def __init__(self):
        self.command = shutil.which("helm")
        self.library = None
        if not self.command:
            import helm_python

            self.library = helm_python

    def name(self):
        if self.command:
            return subprocess.run([self.command, "version", "--short"], capture_output=True, text=True).stdout.strip()
        return f"Helm's library {self.library.helm_sdk_version()}"

    def lint(self, values):
        if self.command:
            with Values(values) as file:
                ran = subprocess.run(
                    [self.command, "lint", "--strict", CHART, "--values", file], capture_output=True, text=True
                )
            return [ran.stdout + ran.stderr] if ran.returncode else []
        report = self.library.chart.lint(CHART, values, strict=True)
        # 1 is a recommendation.
        return [said["error"] for said in report["messages"] if said["severity"] > 1] + report["errors"]

    def render(self, release, namespace, values):
        """The text of all objects; an error is what Helm complains of."""
        if self.command:
            with Values(values) as file:
                ran = subprocess.run(
                    [self.command, "template", release, CHART, "--namespace", namespace, "--values", file],
                    capture_output=True, text=True,
                )
            if ran.returncode:
                raise RuntimeError(ran.stderr)
            return ran.stdout
        with self.library.Chart.load(CHART) as chart:
            rendered = chart.render(values, name=release, namespace=namespace)
            return "\n---\n".join(text for name, text in sorted(rendered.items()) if name.endswith(".yaml"))

    def kinds(self):
        """The CRDs that Helm finds, or None."""
        if self.command:
            return subprocess.run([self.command, "show", "crds", CHART], capture_output=True, text=True).stdout
        with self.library.Chart.load(CHART) as chart:
            return "\n---\n".join(each["data"] for each in chart.crds)


class Values:
    def __init__(self, values):
        self.values = values

    def __enter__(self):
        self.file = tempfile.NamedTemporaryFile("w", suffix=".json")
        json.dump(self.values, self.file)
        self.file.flush()
        return self.file.name

    def __exit__(self, *_):
        self.file.close()


OPEN = {"admin": {"metrics": "0.0.0.0:9180"}}
CASES = {
    "defaults": {},
    "a Deployment": {"kind": "Deployment", "replicas": 3},
    "all of it": {
        "kind": "Deployment",
        "image": {"digest": "sha256:" + "0" * 64},
        "imagePullSecrets": [{"name": "registry"}],
        "config": OPEN | {
            "addressPools": [{"name": "public", "addresses": ["192.0.2.0/26"]}],
            "sources": {"kubernetes": {"class": "example.com/edge", "defaultClass": True}},
        },
        "restartOnChange": True,
        "podLabels": {"team": "edge"},
        "podAnnotations": {"example.com/why": "because"},
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]}}},
        "serviceAccount": {"annotations": {"example.com/who": "edge"}},
        "rbac": {"token": True},
        "extraVolumes": [{"name": "keys", "secret": {"secretName": "bgp"}}],
        "extraVolumeMounts": [{"name": "keys", "mountPath": "/etc/fairway-keys", "readOnly": True}],
        "metrics": {"service": {"enabled": True}, "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
    },
    "as little as possible": {
        "serviceAccount": {"create": False},
        "rbac": {"create": False},
        "updateOnDelete": True,
        "stateHostPath": "",
        "priorityClassName": "",
        "nodeSelector": {"fairway.dev/edge": None},
        "tolerations": [],
        "capabilities": [],
        "resources": None,
        "config": {"admin": None},
    },
}
REFUSED = {
    "a kind that it does not have": ({"kind": "StatefulSet"}, "kind"),
    "a value that nobody reads": ({"replicaCount": 3}, "replicaCount"),
    "metrics that nobody reaches": ({"metrics": {"podMonitor": {"enabled": True}}}, "nobody but the node"),
}


def check_chart(engine, fairway, manifests):
    for name, values in CASES.items():
        place = f"chart, {name}"
        for said in engine.lint(values):
            complain(place, f"lint: {said}")
        made = objects(engine.render("edge", "lb", values))
        print(f"  {place}: {', '.join(called(each) for each in made)}")
        document = {}
        for each in made:
            validate(place, each)
            if each["kind"] == "ConfigMap":
                document = yaml.safe_load(each["data"]["fairway.yaml"])
                check_document(place, each, fairway)
        for each in made:
            if each["kind"] in ["DaemonSet", "Deployment"]:
                check_workload(place, each)
                check_grace(place, each, document)
    for name, (values, word) in REFUSED.items():
        try:
            engine.render("edge", "lb", values)
            complain("chart", f"{name}: was not refused")
        except Exception as error:  # Each engine has kinds of its own.
            if word not in str(error):
                complain("chart", f"{name}: {error}")

    # One truth: what the chart makes is what the manifests have.
    if objects(engine.kinds()) != manifests["crds.yaml"]:
        complain("chart", "its CRDs are not those of packaging/kubernetes/crds.yaml")
    by_kind = {}
    for kind in ["DaemonSet", "Deployment"]:
        for each in objects(engine.render("fairway", "kube-system", {"kind": kind})):
            by_kind.setdefault((each["kind"], each["metadata"]["name"]), each)
    for file in ["rbac.yaml", "daemonset.yaml", "deployment.yaml"]:
        for each in manifests[file]:
            if each["kind"] != "Secret":  # With `rbac.token` alone.
                compare(file, each, by_kind.get((each["kind"], each["metadata"]["name"])))


def comparable(each):
    """An object without what only names it."""
    if each["kind"] in ["DaemonSet", "Deployment"]:
        spec = json.loads(json.dumps(each["spec"]))
        inner = spec["template"]["spec"]
        for container in inner["containers"]:
            container.pop("imagePullPolicy", None)
        if "affinity" in inner:
            # By the labels of its own Pods, whichever they are.
            for term in inner["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]:
                term.pop("labelSelector")
        # Where a chart runs on nodes of its own, a Deployment's are the scheduler's.
        if each["kind"] == "Deployment":
            inner.pop("nodeSelector", None)
            inner.pop("tolerations", None)
        spec.pop("selector")
        spec["template"].pop("metadata")
        return spec
    if each["kind"] == "PodDisruptionBudget":
        return each["spec"]["maxUnavailable"]
    if each["kind"] == "ConfigMap":
        return None  # Examples both.
    return {key: value for key, value in each.items() if key != "metadata"}


def compare(file, ours, charts):
    if charts is None:
        complain(file, f"the chart has no {called(ours)}")
    elif comparable(ours) != comparable(charts):
        complain(file, f"{called(ours)} is not as the chart has it:\n    {comparable(ours)}\n    {comparable(charts)}")


def main():
    fairway = sys.argv[1] if len(sys.argv) > 1 else ""
    version = re.search(r'(?m)^version = "(.*)"', (PACKAGING.parent / "Cargo.toml").read_text()).group(1)

    print(f"manifests, as Kubernetes {' and '.join(VERSIONS)} have them")
    manifests = {file.name: objects(file.read_text()) for file in sorted((PACKAGING / "kubernetes").glob("*.yaml"))}
    document = {}
    for file, all_of_it in manifests.items():
        print(f"  {file}: {len(all_of_it)} objects")
        for each in all_of_it:
            validate(file, each)
            if each["kind"] == "CustomResourceDefinition":
                check_kind(file, each)
            if each["kind"] == "ConfigMap":
                document = yaml.safe_load(each["data"]["fairway.yaml"])
                check_document(file, each, fairway)
    for file, all_of_it in manifests.items():
        for each in all_of_it:
            if each["kind"] in ["DaemonSet", "Deployment"]:
                check_workload(file, each)
                check_grace(file, each, document)
                if each["spec"]["template"]["spec"]["containers"][0]["image"] != f"fairway:{version}":
                    complain(file, f"{called(each)}: its image is not {version}'s")

    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    if chart["appVersion"] != version:
        complain("Chart.yaml", f"appVersion is not {version}")
    try:
        engine = Engine()
    except (ImportError, OSError) as error:
        print(f"the chart: skipped, there is neither `helm` nor its library: {error}")
    else:
        print(f"the chart, by {engine.name()}")
        check_chart(engine, fairway, manifests)
    return 1 if wrong else 0


if __name__ == "__main__":
    os.environ.setdefault("NO_COLOR", "1")
    sys.exit(main())
