"""The Node objects of a stand-in for the Kubernetes API server: the API's documented rules for one kind, without HTTP.

Every change takes the next resourceVersion, one counter for all. A change that changes nothing takes none and is no event. What is old is
forgotten: who asks for changes since then is told to list again (410), as is who comes back too late for the rest of a list.
"""

from __future__ import annotations

import copy
import ipaddress
import re
import time
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

Object = dict[str, Any]

KEEP = 1000  # changes
NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
ANNOTATIONS_MAX = 256 << 10
# core/v1: the lists of a Node that a strategic merge patch merges, by the key of their elements ("" for plain values). Others are replaced.
MERGED_LISTS = {("status", "conditions"): "type", ("status", "addresses"): "type", ("spec", "podCIDRs"): ""}


class Refused(Exception):
    """An answer that is a Status object."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason = code, reason

    def status(self) -> Object:
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": str(self), "reason": self.reason, "code": self.code}


class Change(NamedTuple):
    """One change of a Node, and the line that tells watchers of it. `before` None: it was added."""

    revision: int
    name: str
    before: Object | None
    line: bytes


class Page(NamedTuple):
    revision: int
    items: list[Object]
    next: str
    remaining: int


class Objects:
    """All Nodes. `changed` is called after every change."""

    def __init__(self, changed: Callable[[Change], None] = lambda _: None, keep: int = KEEP) -> None:
        self.changed = changed
        self.keep = keep
        self.revision = 1000
        self.forgotten = 1000  # changes up to this one are no longer kept
        self.nodes: dict[str, Object] = {}
        self.history: list[Change] = []

    # ---- reading -------------------------------------------------------------------------------------------------

    def get(self, name: str) -> Object:
        if name not in self.nodes:
            raise Refused(404, "NotFound", f'nodes "{name}" not found')
        return self.nodes[name]

    def page(self, limit: int, token: str) -> Page:
        """Part of a list in the order of names, as it was when its first page was asked for. `limit` 0: all."""
        revision, after = self.revision, ""
        if token:
            try:
                revision_text, _, after = bytes.fromhex(token).decode().partition(" ")
                revision = int(revision_text)
            except ValueError:
                raise Refused(400, "BadRequest", "continue key is not valid: it is none of this server's") from None
            if revision < self.forgotten:
                raise Refused(410, "Expired", "The provided continue parameter is too old to display a consistent list result: start a new list without it.")
        at = self._at(revision)
        names = sorted(name for name in at if name > after)
        some = names[:limit] if limit else names
        rest = len(names) - len(some)
        return Page(revision, [at[name] for name in some], f"{revision} {some[-1]}".encode().hex() if rest else "", rest)

    def _at(self, revision: int) -> dict[str, Object]:
        """All Nodes as they were: the kept changes undone, the last one first."""
        found = dict(self.nodes)
        for change in reversed(self.history):
            if change.revision <= revision:
                break
            if change.before is None:
                del found[change.name]
            else:
                found[change.name] = change.before
        return found

    def since(self, revision: int) -> list[Change]:
        """The changes after that revision. Refused (410) when some are no longer kept."""
        if revision < self.forgotten:
            raise Refused(410, "Expired", f"too old resource version: {revision} ({self.forgotten})")
        return [change for change in self.history if change.revision > revision]

    def compact(self) -> None:
        """Forget all changes."""
        self.history.clear()
        self.forgotten = self.revision

    # ---- writing -------------------------------------------------------------------------------------------------

    def create(self, given: Object) -> Object:
        node = copied(given)
        metadata = node.setdefault("metadata", {})
        name = metadata.get("name", "")
        if metadata.get("resourceVersion"):
            raise Refused(400, "BadRequest", "resourceVersion should not be set on objects to be created")
        if name in self.nodes:
            raise Refused(409, "AlreadyExists", f'nodes "{name}" already exists')
        metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        node |= {"kind": "Node", "apiVersion": "v1"}
        node.setdefault("spec", {})
        node.setdefault("status", {})
        default_cidrs(node, None)
        check(node)
        return self._put("ADDED", node)

    def replace(self, name: str, given: Object, subresource: str) -> Object:
        """PUT. Without a resourceVersion it overwrites whatever there is."""
        self.get(name)
        return self._update(name, copied(given), subresource)

    def patch(self, name: str, patch: Object, strategic: bool, subresource: str) -> Object:
        """PATCH. Of a resourceVersion in it: as it was read, or refused."""
        before = self.get(name)
        return self._update(name, merged(before, patch, strategic), subresource)

    def delete(self, name: str, revision: str = "") -> Object:
        """`revision`: the precondition of DeleteOptions."""
        node = copied(self.get(name))
        if revision and revision != node["metadata"]["resourceVersion"]:
            raise conflict(name)
        return self._put("DELETED", node)

    def _update(self, name: str, node: Object, subresource: str) -> Object:
        before = self.nodes[name]
        metadata = node.setdefault("metadata", {})
        if not isinstance(metadata, dict):
            raise Refused(400, "BadRequest", "metadata: expected an object")
        if metadata.get("name", name) != name:
            raise Refused(400, "BadRequest", f"the name of the object ({metadata.get('name')}) does not match the name on the URL ({name})")
        if metadata.get("resourceVersion") not in (None, "", before["metadata"]["resourceVersion"]):
            raise conflict(name)
        metadata |= {key: before["metadata"][key] for key in ("name", "uid", "creationTimestamp", "resourceVersion")}
        node |= {"kind": "Node", "apiVersion": "v1"}
        # The object itself leaves its status alone, the status subresource leaves the spec alone. Both take labels and annotations.
        keep = "spec" if subresource == "status" else "status"
        node[keep] = copied(before[keep])
        node.setdefault("spec", {})
        node.setdefault("status", {})
        default_cidrs(node, before)
        check(node, before)
        if node == before:
            return before
        return self._put("MODIFIED", node)

    def _put(self, kind: str, node: Object) -> Object:
        self.revision += 1
        name = node["metadata"]["name"]
        node["metadata"]["resourceVersion"] = str(self.revision)
        before = self.nodes.pop(name, None)
        if kind != "DELETED":
            self.nodes[name] = node
        change = Change(self.revision, name, before, msgspec.json.encode({"type": kind, "object": node}))
        self.history.append(change)
        if len(self.history) > self.keep + self.keep // 4:
            self.forgotten = self.history[-self.keep - 1].revision
            del self.history[: -self.keep]
        self.changed(change)
        return node


def copied(value: Object) -> Object:
    return copy.deepcopy(value)


def conflict(name: str) -> Refused:
    text = "the object has been modified; please apply your changes to the latest version and try again"
    return Refused(409, "Conflict", f'Operation cannot be fulfilled on nodes "{name}": {text}')


def invalid(name: str, what: str) -> Refused:
    return Refused(422, "Invalid", f'Node "{name}" is invalid: {what}')


def default_cidrs(node: Object, before: Object | None) -> None:
    """podCIDR is podCIDRs' first: who sets one of them sets both."""
    spec = node["spec"]
    if not isinstance(spec, dict):
        raise Refused(400, "BadRequest", "spec: expected an object")
    if spec.get("podCIDR") and not spec.get("podCIDRs"):
        spec["podCIDRs"] = [spec["podCIDR"]]
    elif spec.get("podCIDRs") and (not spec.get("podCIDR") or before is None):
        spec["podCIDR"] = spec["podCIDRs"][0]


def check(node: Object, before: Object | None = None) -> None:
    """What the API validates of a Node, as far as it concerns a network. Raises Refused."""
    metadata, spec = node["metadata"], node["spec"]
    name = metadata.get("name", "")
    if not isinstance(name, str) or len(name) > 253 or NAME.fullmatch(name) is None:
        raise invalid(str(name), "metadata.name: a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.'")
    annotations = metadata.get("annotations", {})
    if not isinstance(annotations, dict) or not all(isinstance(value, str) for value in annotations.values()):
        raise Refused(400, "BadRequest", "metadata.annotations: expected strings by name")
    if sum(len(key) + len(value) for key, value in annotations.items()) > ANNOTATIONS_MAX:
        raise invalid(name, f"metadata.annotations: Too long: may not be more than {ANNOTATIONS_MAX} bytes")
    cidrs = spec.get("podCIDRs") or []
    families = []
    for text in cidrs:
        try:
            families.append(ipaddress.ip_interface(text).version)
        except ValueError:
            raise invalid(name, f"spec.podCIDRs: Invalid value: {text!r}: must be a valid CIDR value") from None
    if len(cidrs) > 2 or len(set(families)) != len(families):
        raise invalid(name, f"spec.podCIDRs: Invalid value: {cidrs}: may specify no more than one CIDR for each IP family")
    if cidrs and spec.get("podCIDR") != cidrs[0]:
        raise invalid(name, "spec.podCIDRs[0]: must equal spec.podCIDR")
    if before is not None and before["spec"].get("podCIDRs") and before["spec"]["podCIDRs"] != cidrs:
        raise invalid(name, 'spec: Forbidden: node updates may not change podCIDR except from "" to valid')


# ---- patches ------------------------------------------------------------------------------------------------------


def merged(value: Object, patch: Object, strategic: bool) -> Object:
    """RFC 7386, or with `strategic` Kubernetes' form of it, which knows how to merge some lists."""
    result = _merge(copied(value), patch, (), strategic)
    assert isinstance(result, dict)
    return result


def _merge(value: Any, patch: Any, path: tuple[str, ...], strategic: bool) -> Any:
    if isinstance(patch, dict):
        directive = patch.get("$patch") if strategic else None
        if directive not in (None, "replace", "delete", "merge"):
            raise Refused(400, "BadRequest", f"Unknown patch type found: {directive}")
        if directive == "delete":
            return {}
        result = value if isinstance(value, dict) and directive != "replace" else {}
        for key, item in patch.items():
            if strategic and key.startswith("$"):
                continue
            if item is None:
                result.pop(key, None)
            else:
                result[key] = _merge(result.get(key), item, (*path, key), strategic)
        return result
    if isinstance(patch, list) and strategic and path in MERGED_LISTS:
        return _merge_list(value if isinstance(value, list) else [], patch, path, MERGED_LISTS[path])
    return copy.deepcopy(patch)


def _merge_list(value: list[Any], patch: list[Any], path: tuple[str, ...], key: str) -> list[Any]:
    if not key:
        return [*value, *(item for item in patch if item not in value)]
    if any(isinstance(item, dict) and item.get("$patch") == "replace" for item in patch):
        return [copied(item) for item in patch if item.get("$patch") != "replace"]
    result = list(value)
    for item in patch:
        if not isinstance(item, dict) or key not in item:
            raise Refused(400, "BadRequest", f"map: does not contain declared merge key: {key}")
        at = next((i for i, there in enumerate(result) if there.get(key) == item[key]), None)
        if item.get("$patch") == "delete":
            if at is not None:
                del result[at]
        elif at is None:
            result.append(_merge({}, item, (*path, ""), True))
        else:
            result[at] = _merge(copied(result[at]), item, (*path, ""), True)
    return result
