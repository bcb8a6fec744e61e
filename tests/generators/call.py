"""Checks a generated Python client: it has every operation, and can call a node.

    call.py DESCRIPTION BASE_URL TOKEN
"""

import importlib
import json
import sys

from generated import AuthenticatedClient
from generated.models import CallBody, ListBody


def main(description, base, token):
    with open(description) as file:
        operations = [
            operation["operationId"] for methods in json.load(file)["paths"].values() for operation in methods.values()
        ]
    found = {name: importlib.import_module(f"generated.api.default.{name}") for name in operations}
    assert len(found) == len(operations), "operations share an id"
    missing = [name for name, module in found.items() if not hasattr(module, "sync_detailed")]
    assert not missing, missing

    client = AuthenticatedClient(base_url=base, token=token, timeout=20)
    call = {"caller": {"account": "python"}, "resource": "llama-3.3-70b", "usage": {"tokens": 1500}}
    decided = found["consume"].sync_detailed(client=client, body=CallBody.from_dict(call))
    assert decided.status_code == 200 and decided.parsed.verdict.value == "allowed", decided
    page = ListBody.from_dict({"caller": {"account": "python"}, "page_size": 100})
    listed = found["list_rate_limits"].sync_detailed(client=client, body=page).parsed
    used = [quota.used for of in listed.resources if of.resource == "llama-3.3-70b" for quota in of.quotas]
    assert 1500 in used, listed
    print(f"python: {len(found)} operations, and a call")


main(*sys.argv[1:])
