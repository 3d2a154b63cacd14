#!/usr/bin/env python3
"""Checks custom resources with the schemas in schemas.json.

    PYTHONPATH=.tools/kubernetes-checks-1.37.0 tests/crds/validate.py < manifests.yaml

Prints a line for each resource of a kind that has a schema. Strict, as `kubectl apply` is: a field that the schema
does not have is an error. So is a CEL rule that does not hold. A few rules use functions that cel-python does not have:
they are listed. Exit status: 1 with errors.
"""

import copy
import json
import os
import sys

import jsonschema
import yaml

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.append(f"{HERE}/../../.tools/cel-python-0.5.0")
try:
    import celpy
    import celpy.adapter
except ImportError:
    sys.exit("validate.py: cel-python is missing: run tools/fetch-kubernetes")

CEL = celpy.Environment()
BUILT_IN = ("v1", "apps/v1", "batch/v1", "policy/v1")


def main():
    with open(f"{HERE}/schemas.json", encoding="utf-8") as file:
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
        errors = [(".".join(map(str, error.absolute_path)), message(error)) for error in validator.iter_errors(document)]
        if not errors:
            stored = with_defaults(schemas[name]["schema"], copy.deepcopy(document))
            errors = list(broken_rules(schemas[name]["schema"], stored, ""))
        good = good and not errors
        for place, text in errors:
            print(f"{name} {document.get('metadata', {}).get('name')}: {place}: {text}")
        if not errors:
            print(f"{name}: valid")
    return 0 if good else 1


def message(error):
    is_trimmed = error.validator == "not" and error.validator_value == {}
    return "is used, and left out of schemas.json: run trim.py" if is_trimmed else error.message


def below(schema, value):
    """The parts of a value, with their schemas and names."""
    if isinstance(value, dict):
        for name, inner in schema.get("properties", {}).items():
            if name in value:
                yield inner, value[name], name
        if isinstance(schema.get("additionalProperties"), dict):
            yield from ((schema["additionalProperties"], each, name) for name, each in value.items())
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        yield from ((schema["items"], each, str(index)) for index, each in enumerate(value))


def with_defaults(schema, value):
    if isinstance(value, dict):
        for name, inner in schema.get("properties", {}).items():
            if name not in value and "default" in inner:
                value[name] = copy.deepcopy(inner["default"])
    for inner, part, _ in below(schema, value):
        with_defaults(inner, part)
    return value


def broken_rules(schema, value, place):
    for rule in schema.get("x-kubernetes-validations", []):
        try:
            holds = CEL.program(CEL.compile(rule["rule"])).evaluate({"self": celpy.adapter.json_to_cel(value)})
        except (celpy.CELEvalError, celpy.CELParseError):
            print(f"{place}: not evaluated: {rule['rule']}")
            continue
        if not holds:
            yield place, rule["message"]
    for inner, part, name in below(schema, value):
        yield from broken_rules(inner, part, f"{place}.{name}".lstrip("."))


def strict(schema):
    """The JSON schema that accepts what an API server stores without dropping or refusing anything."""
    if schema.get("x-trimmed"):
        return {"not": {}}
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    result = {key: value for key, value in schema.items() if not key.startswith("x-") and key not in ("format", "default")}
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
