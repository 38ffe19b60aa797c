"""Check objects against the schemas of Kubernetes; runs in the environment of requirements.txt.

Reads JSON from standard input, {"versions": [...], "objects": [...]}, and prints a list of sentences as JSON.
"""

import functools
import json
import sys

import kubernetes_validate
from kubernetes_validate import utils

# It reads its files anew for every object.
utils.schema_contents = functools.cache(utils.schema_contents)
utils.all_versions = functools.cache(utils.all_versions)

given = json.load(sys.stdin)
faults = []
for version in given['versions']:
    for one in given['objects']:
        try:
            kubernetes_validate.validate(one, version, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            faults.append(f'{version}: there is no {one.get("apiVersion")} {one.get("kind")}')
        except kubernetes_validate.ValidationError as error:
            where = '.'.join(str(step) for step in error.path)
            faults.append(f'{version}: {one["kind"]}/{one["metadata"]["name"]}: {where}: {error.message}')
print(json.dumps(faults))
