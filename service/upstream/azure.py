"""Azure OpenAI's addresses. Its bodies, streams and errors are OpenAI's.

Source: Azure OpenAI REST API reference. With a dated `api-version` the operations of a model lie below its deployment
(`/openai/deployments/<deployment>/chat/completions`), Responses below `/openai`. The newer surface `/openai/v1` needs
no version and takes the deployment from the body's `model`.
"""

from __future__ import annotations

import re

from service.errors import MalformedRequest

_BELOW_DEPLOYMENTS = frozenset({"/chat/completions", "/completions", "/embeddings"})
_DEPLOYMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Nothing that could lead an address elsewhere."""


def below(path: str, model: str, api_version: str) -> str:
    """What follows the resource's address for a path of OpenAI's, `/chat/completions`, and a deployment.

    `api_version` is a date (`2024-10-21`), or `preview`, `latest` or nothing for `/openai/v1`. Raises MalformedRequest
    for a model's name that no deployment can have.
    """
    dated = api_version[:1].isdecimal()
    if not dated:
        place = f"/openai/v1{path}"
    elif path in _BELOW_DEPLOYMENTS:
        if not _DEPLOYMENT.fullmatch(model):
            raise MalformedRequest("The provider has no deployment of such a name.", pointer="/model")
        place = f"/openai/deployments/{model}{path}"
    else:
        place = f"/openai{path}"
    if not api_version:
        return place
    return f"{place}{'&' if '?' in place else '?'}api-version={api_version}"
