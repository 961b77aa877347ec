"""Requests that vLLM asks about after they ended."""

from __future__ import annotations

from typing import Any


def remember_ended(manager: Any) -> None:
    """Let a manager of vLLM 0.26's tiers store the last chunks of a request that has ended.

    Its scheduler builds those jobs one step after the request ended; by then the manager has forgotten the request, and the
    engine ends with a KeyError. So the request begins anew there, and ends as soon as its chunks are stored. Other managers stay as
    they are.
    """
    states = getattr(manager, "_req_state", None)
    if not isinstance(states, dict):
        return
    prepare = manager.prepare_store

    def prepare_store(keys: Any, req_context: Any) -> Any:
        if req_context.req_id in states:
            return prepare(keys, req_context)
        manager.on_new_request(req_context)
        try:
            return prepare(keys, req_context)
        finally:
            manager.on_request_finished(req_context)

    manager.prepare_store = prepare_store
