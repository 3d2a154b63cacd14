#!/usr/bin/env python3
"""Checks custom resources with the schemas in schemas.json.

    PYTHONPATH=.tools/kubernetes-checks-1.37.0 tests/crds/validate.py < manifests.yaml

Prints a line for each resource of a kind that has a schema. Strict, as `kubectl apply` is: a field that the schema
does not have is an error. CEL rules are not evaluated. Exit status: 1 with errors.
"""

import json
import os
import sys

import jsonschema
import yaml

BUILT_IN = ("v1", "apps/v1", "batch/v1", "policy/v1")


def main():
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "schemas.json"), encoding="utf-8") as file:
        schemas = json.load(file)
    good = True
    for document in filter(None, yaml.safe_load_all(sys.stdin)):
        version = document.get("apiVersion", "")
        name = f"{version}/{document.get('kind')}" if version else "meshConfig"
        if name not in schemas:
            if version not in BUILT_IN and ".k8s.io/" not in version or "gateway.networking" in version:
                print(f"{name}: no schema")
                good = False
            continue
        validator = jsonschema.Draft202012Validator(strict(schemas[name]["schema"]))
        errors = list(validator.iter_errors(document))
        good = good and not errors
        for error in errors:
            place = ".".join(map(str, error.absolute_path))
            text = "is used, and left out of schemas.json: run trim.py" if error.validator == "not" and \
                error.validator_value == {} else error.message
            print(f"{name} {document.get('metadata', {}).get('name')}: {place}: {text}")
        if not errors:
            print(f"{name}: valid")
    return 0 if good else 1


def strict(schema):
    """The JSON schema that accepts what an API server stores without dropping or refusing anything."""
    if schema.get("x-trimmed"):
        return {"not": {}}
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    result = {key: value for key, value in schema.items() if not key.startswith("x-") and key != "format"}
    if "properties" in schema:
        result["properties"] = {name: strict(inner) for name, inner in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            result.setdefault("additionalProperties", False)
    if isinstance(schema.get("items"), dict):
        result["items"] = strict(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        result["additionalProperties"] = strict(schema["additionalProperties"])
    if result.pop("nullable", False) and "type" in result:
        result["type"] = [result["type"], "null"]
    return result


if __name__ == "__main__":
    sys.exit(main())
