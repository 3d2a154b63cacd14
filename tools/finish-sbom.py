#!/usr/bin/env python3
"""Finishes the SBOM that cargo-cyclonedx writes, and compares it with Cargo.lock.

    tools/finish-sbom.py SBOM CARGO_LOCK RESULT

Removes what differs between two machines (paths, a random serial number, the time of the run) and what only tests need, and
adds the SQLite that is compiled into libsqlite3-sys. Fails unless the crates are those that cargo builds the binary from, with the versions and
checksums of Cargo.lock, and the schema of CycloneDX accepts the SBOM.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
import uuid
from datetime import datetime, timezone
from pathlib import Path

# Of tools/fetch-kubernetes: checkov comes with it.
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

TARGET = "cdx:rustc:sbom:target:triple"


def main():
    source, lock, result = sys.argv[1:]
    text = Path(source).read_text()
    root = json.loads(text)["metadata"]["component"]
    purl = f"pkg:cargo/{root['name']}@{root['version']}"
    # As a JSON string, a path may have escapes.
    sbom = json.loads(text.replace(json.dumps(root["bom-ref"]), json.dumps(purl)))
    sbom["metadata"]["component"]["purl"] = purl
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
    sbom["metadata"]["timestamp"] = datetime.fromtimestamp(epoch, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    add_sqlite(sbom)
    compare(sbom, tomllib.loads(Path(lock).read_text()))

    sbom.pop("serialNumber", None)
    digest = hashlib.sha256(json.dumps(sbom, sort_keys=True).encode()).hexdigest()
    sbom["serialNumber"] = uuid.uuid5(uuid.NAMESPACE_URL, f"{purl}#{digest}").urn
    finished = json.dumps(sbom, indent=2) + "\n"
    if "file://" in finished or os.getcwd() in finished:
        sys.exit("finish-sbom: the SBOM names a folder of this machine")
    problem = JsonStrictValidator(SchemaVersion.V1_5).validate_str(finished)
    if problem:
        sys.exit(f"finish-sbom: the schema of CycloneDX 1.5 refuses the SBOM: {str(problem)[:1000]}")
    Path(result).write_text(finished)


def add_sqlite(sbom):
    """Adds the C library of a crate. Its version is in its header."""
    command = ["cargo", "metadata", "--locked", "--format-version", "1"]
    metadata = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    [crate] = [package for package in metadata["packages"] if package["name"] == "libsqlite3-sys"]
    header = Path(crate["manifest_path"]).parent / "sqlite3" / "sqlite3.h"
    [version] = re.findall(r'^#define SQLITE_VERSION +"(.+)"', header.read_text(), re.MULTILINE)
    purl = f"pkg:generic/sqlite@{version}"
    sbom["components"].append(
        {
            "type": "library",
            "bom-ref": purl,
            "name": "sqlite",
            "version": version,
            "description": "SQLite, compiled from the source in libsqlite3-sys",
            "scope": "required",
            "licenses": [{"expression": "blessing"}],
            "purl": purl,
            "cpe": f"cpe:2.3:a:sqlite:sqlite:{version}:*:*:*:*:*:*:*",
        }
    )
    [user] = [entry for entry in sbom["dependencies"] if f"libsqlite3-sys@{crate['version']}" in entry["ref"]]
    user["dependsOn"] = sorted([*user.get("dependsOn", []), purl])
    sbom["dependencies"].append({"ref": purl})


def compare(sbom, lock):
    """Removes crates that only tests need. Fails unless the others are those of the binary, as Cargo.lock has them."""
    [target] = [entry["value"] for entry in sbom["metadata"]["properties"] if entry["name"] == TARGET]
    command = ["cargo", "tree", "--locked", "--edges", "normal", "--target", target, "--prefix", "none", "--format", "{p}"]
    tree = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    built = {tuple(line.split()[:2]) for line in tree.splitlines() if line}
    built = {(name, version.removeprefix("v")) for name, version in built}
    root = sbom["metadata"]["component"]
    built.remove((root["name"], root["version"]))

    # cargo-cyclonedx looks at the crates that the whole package resolves to.
    is_crate = lambda component: component["purl"].startswith("pkg:cargo/")
    is_built = lambda component: (component["name"], component["version"]) in built
    unbuilt = {crate["bom-ref"] for crate in sbom["components"] if is_crate(crate) and not is_built(crate)}
    sbom["components"] = [component for component in sbom["components"] if component["bom-ref"] not in unbuilt]
    sbom["dependencies"] = [entry for entry in sbom["dependencies"] if entry["ref"] not in unbuilt]
    for entry in sbom["dependencies"]:
        if "dependsOn" in entry:
            entry["dependsOn"] = [ref for ref in entry["dependsOn"] if ref not in unbuilt]

    crates = [component for component in sbom["components"] if is_crate(component)]
    missing = built - {(crate["name"], crate["version"]) for crate in crates}
    if missing:
        sys.exit(f"finish-sbom: the SBOM lacks {sorted(missing)}")
    locked = {(crate["name"], crate["version"]): crate.get("checksum") for crate in lock["package"]}
    for crate in crates:
        checksum = locked.get((crate["name"], crate["version"]))
        if checksum is None or [entry["content"] for entry in crate["hashes"]] != [checksum]:
            sys.exit(f"finish-sbom: Cargo.lock has no {crate['name']} {crate['version']} with this checksum")


main()
