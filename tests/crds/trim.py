#!/usr/bin/env python3
"""Writes schemas.json, the part of other projects' schemas that the manifests in k8s/ use.

    PYTHONPATH=.tools/kubernetes-checks-1.37.0 tests/crds/trim.py FOLDER

FOLDER has checkouts of istio/istio, envoyproxy/gateway, cert-manager/cert-manager and
prometheus-operator/prometheus-operator, by these paths. Descriptions are left out, and large parts that no manifest
uses are marked with `x-trimmed`. Run it again when validate.py reports such a part.
"""

import glob
import json
import os
import sys

import yaml

SOURCES = {
    "istio/istio": ["manifests/charts/base/files/crd-all.gen.yaml"],
    "envoyproxy/gateway": [
        "charts/gateway-crds-helm/templates/generated/gateway.envoyproxy.io_*.yaml",
        "charts/gateway-crds-helm/templates/experimental-gatewayapi-crds.yaml",
    ],
    "cert-manager/cert-manager": ["deploy/crds/cert-manager.io_certificates.yaml",
                                  "deploy/crds/cert-manager.io_issuers.yaml"],
    "prometheus-operator/prometheus-operator": [
        "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml",
        "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
    ],
}
# An unused part of up to this many characters is kept.
SMALL = 300
DROPPED = {"description", "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-map-type", "title", "example"}
BODY = {"type": "object", "properties": {
    "maxRequestBytes": {"type": "integer"},
    "allowPartialMessage": {"type": "boolean"},
    "packAsBytes": {"type": "boolean"},
}}
# istio/api mesh/v1alpha1/config.proto: MeshConfig.ExtensionProvider, for providers of this kind.
PROVIDER = {
    "type": "object",
    "required": ["name", "envoyExtAuthzGrpc"],
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "envoyExtAuthzGrpc": {
            "type": "object",
            "required": ["service", "port"],
            "properties": {
                "service": {"type": "string", "minLength": 1},
                "port": {"type": "integer", "minimum": 1, "maximum": 65535},
                "timeout": {"type": "string", "pattern": "^[0-9]+(\\.[0-9]+)?s$"},
                "failOpen": {"type": "boolean"},
                "clearRouteCache": {"type": "boolean"},
                "statusOnError": {"type": "string", "pattern": "^[1-5][0-9][0-9]$"},
                "includeRequestBodyInCheck": BODY,
            },
        },
    },
}
MESH = {"type": "object", "required": ["meshConfig"], "properties": {"meshConfig": {
    "type": "object",
    "properties": {"extensionProviders": {"type": "array", "items": PROVIDER}},
}}}


def main(folder):
    here = os.path.dirname(os.path.abspath(__file__))
    used = {}
    for path in glob.glob(f"{here}/../../k8s/**/*.yaml", recursive=True):
        if "/chart/" in path:
            continue
        with open(path, encoding="utf-8") as file:
            for document in yaml.safe_load_all(file):
                if isinstance(document, dict) and "apiVersion" in document:
                    used.setdefault(f"{document['apiVersion']}/{document.get('kind')}", []).append(document)
    schemas = {"meshConfig": {"source": "istio/api", "schema": MESH}}
    for project, patterns in SOURCES.items():
        for path in sorted(path for pattern in patterns for path in glob.glob(f"{folder}/{project}/{pattern}")):
            with open(path, encoding="utf-8") as file:
                text = "".join(line for line in file if not line.startswith("{{"))
            for crd in filter(None, yaml.load_all(text, Loader=yaml.CSafeLoader)):
                add(schemas, crd, project, used)
    with open(f"{here}/schemas.json", "w", encoding="utf-8") as file:
        file.write("{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(schema, sort_keys=True)}"
                                      for name, schema in sorted(schemas.items())) + "\n}\n")


def add(schemas, crd, project, used):
    if crd.get("kind") != "CustomResourceDefinition":
        return
    spec = crd["spec"]
    for version in spec["versions"]:
        name = f"{spec['group']}/{version['name']}/{spec['names']['kind']}"
        if name in used and version["served"]:
            schema = version["schema"]["openAPIV3Schema"]
            schema["properties"]["metadata"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
            schema["properties"] |= {"apiVersion": {"type": "string"}, "kind": {"type": "string"}}
            schema["properties"].pop("status", None)
            schemas[name] = {"source": project, "schema": trimmed(schema, used[name])}


def trimmed(schema, values):
    """The schema, with what none of these values uses left out where it is large."""
    kept = {key: value for key, value in schema.items() if key not in DROPPED}
    rules = kept.pop("x-kubernetes-validations", [])
    # A rule about a change needs the object from before.
    rules = [{"rule": rule["rule"], "message": rule.get("message", rule["rule"])} for rule in rules
             if "oldSelf" not in rule["rule"]]
    if rules:
        kept["x-kubernetes-validations"] = rules
    if "properties" in schema:
        kept["properties"] = {}
        for name, inner in schema["properties"].items():
            below = [value[name] for value in values if isinstance(value, dict) and name in value]
            part = trimmed(inner, below)
            if not below and len(json.dumps(part)) > SMALL:
                part = {"x-trimmed": True} | {key: part[key] for key in part if key == "default"}
            kept["properties"][name] = part
    if isinstance(schema.get("items"), dict):
        kept["items"] = trimmed(schema["items"], [each for value in values if isinstance(value, list) for each in value])
    if isinstance(schema.get("additionalProperties"), dict):
        below = [each for value in values if isinstance(value, dict) for each in value.values()]
        kept["additionalProperties"] = trimmed(schema["additionalProperties"], below)
    return kept


if __name__ == "__main__":
    main(sys.argv[1])
