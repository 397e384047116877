"""The stand-in API server against the rules that Kubernetes documents for its API, one test each. The store's tests stand on it."""

import asyncio
import json

import aiohttp
import pytest

from tweed.lab.kubeserver import KubeServer

NODES = "/api/v1/nodes"
MERGE, STRATEGIC = "application/merge-patch+json", "application/strategic-merge-patch+json"
TIMEOUT_S = 20.0


class Client:
    def __init__(self, session, server):
        self.session, self.server, self.streams = session, server, []

    async def ask(self, method, path, body=None, kind="application/json", token="", **query):
        headers = {"Content-Type": kind} if body is not None else {}
        headers |= {"Authorization": f"Bearer {token}"} if token else {}
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.request(method, self.server.url + path, data=data, headers=headers, params=query) as response:
            return response.status, await response.json()

    async def make(self, name, *cidrs, **spec):
        status, node = await self.ask("POST", NODES, {"metadata": {"name": name}, "spec": ({"podCIDRs": list(cidrs)} if cidrs else {}) | spec})
        assert status == 201
        return node

    async def annotate(self, name, value="x"):
        return (await self.ask("PATCH", f"{NODES}/{name}", {"metadata": {"annotations": {"a": value}}}, MERGE))[1]

    async def watch(self, revision, **query):
        response = await self.session.get(self.server.url + NODES, params={"watch": "1", "resourceVersion": str(revision), **query})
        self.streams.append(response)
        return response

    async def lines(self, response, count):
        """The next lines of a watch: (type, name, resourceVersion)."""
        found = []
        async with asyncio.timeout(TIMEOUT_S):
            while len(found) < count and (line := await response.content.readline()):
                told = json.loads(line)
                metadata = told["object"].get("metadata", {})
                found.append((told["type"], metadata.get("name"), int(metadata.get("resourceVersion", 0)) or told["object"].get("code")))
        return found


@pytest.fixture
async def make_client():
    servers, sessions, clients = [], [], []

    async def make(**options):
        servers.append(KubeServer(**options))
        await servers[-1].start()
        sessions.append(aiohttp.ClientSession())
        clients.append(Client(sessions[-1], servers[-1]))
        return clients[-1]

    yield make
    for client in clients:
        for stream in client.streams:
            stream.close()
    for session in sessions:
        await session.close()
    for server in servers:
        await server.close()


@pytest.fixture
async def client(make_client):
    return await make_client()


def revision(node):
    return int(node["metadata"]["resourceVersion"])


# ---- objects ------------------------------------------------------------------------------------------------------


async def test_resource_versions_rise_over_all_objects(client):
    revisions = [revision(await client.make(name)) for name in ("b", "a", "c")]
    revisions += [revision(await client.annotate("a")), revision((await client.ask("DELETE", f"{NODES}/b"))[1]), revision(await client.make("b"))]
    assert revisions == sorted(set(revisions))


async def test_a_change_that_changes_nothing_takes_no_version_and_tells_nobody(client):
    await client.make("a")
    first = await client.annotate("a")
    stream = await client.watch(revision(first))
    assert await client.annotate("a") == first
    await client.annotate("a", "y")
    assert await client.lines(stream, 1) == [("MODIFIED", "a", revision(first) + 1)]


async def test_the_server_sets_what_is_the_servers(client):
    status, node = await client.ask("POST", NODES, {"metadata": {"name": "a", "uid": "mine", "creationTimestamp": "1999-01-01T00:00:00Z"}})
    assert status == 201 and node["kind"] == "Node" and node["metadata"]["uid"] != "mine" and not node["metadata"]["creationTimestamp"].startswith("1999")
    patched = await client.ask("PATCH", f"{NODES}/a", {"metadata": {"uid": "other"}}, MERGE)
    assert patched[1]["metadata"]["uid"] == node["metadata"]["uid"]


async def test_refusals_are_status_objects(client):
    status, answer = await client.ask("GET", f"{NODES}/nobody")
    assert (status, answer["kind"], answer["reason"], answer["code"]) == (404, "Status", "NotFound", 404)
    assert (await client.ask("GET", "/api/v1/elephants"))[0] == 404


async def test_a_name_is_taken_once(client):
    await client.make("a")
    status, answer = await client.ask("POST", NODES, {"metadata": {"name": "a"}})
    assert (status, answer["reason"]) == (409, "AlreadyExists")


@pytest.mark.parametrize("name", ["", "A", "a_b", "a/b", "-a", "a" * 254])
async def test_names_are_lower_case_domain_names(client, name):
    assert (await client.ask("POST", NODES, {"metadata": {"name": name}}))[0] == 422


async def test_the_object_leaves_status_alone_and_status_leaves_the_spec_alone(client):
    await client.make("a", "10.244.1.0/24")
    both = {"metadata": {"annotations": {"k": "v"}}, "spec": {"unschedulable": True}, "status": {"phase": "x"}}
    node = (await client.ask("PATCH", f"{NODES}/a", both, MERGE))[1]
    assert (node["spec"]["unschedulable"], node["status"], node["metadata"]["annotations"]) == (True, {}, {"k": "v"})
    other = {"metadata": {"annotations": {"k": "w"}}, "spec": {"unschedulable": False}, "status": {"phase": "y"}}
    node = (await client.ask("PATCH", f"{NODES}/a/status", other, MERGE))[1]
    assert (node["spec"]["unschedulable"], node["status"], node["metadata"]["annotations"]) == (True, {"phase": "y"}, {"k": "w"})
    node["spec"], node["status"] = {}, {"phase": "z"}
    node = (await client.ask("PUT", f"{NODES}/a/status", node))[1]
    assert (node["spec"]["podCIDR"], node["status"]) == ("10.244.1.0/24", {"phase": "z"})


async def test_of_two_writers_of_one_version_the_second_is_refused(client):
    node = await client.make("a")
    assert (await client.ask("PUT", f"{NODES}/a", node | {"metadata": node["metadata"] | {"annotations": {"a": "1"}}}))[0] == 200
    status, answer = await client.ask("PUT", f"{NODES}/a", node | {"metadata": node["metadata"] | {"annotations": {"a": "2"}}})
    assert (status, answer["reason"]) == (409, "Conflict")
    stale = {"metadata": {"resourceVersion": node["metadata"]["resourceVersion"], "annotations": {"a": "3"}}}
    assert (await client.ask("PATCH", f"{NODES}/a", stale, MERGE))[0] == 409
    assert (await client.ask("DELETE", f"{NODES}/a", {"preconditions": {"resourceVersion": node["metadata"]["resourceVersion"]}}))[0] == 409
    assert (await client.ask("PATCH", f"{NODES}/a", {"metadata": {"annotations": {"a": "4"}}}, MERGE))[0] == 200


async def test_a_pod_cidr_is_given_once(client):
    await client.make("a")
    node = (await client.ask("PATCH", f"{NODES}/a", {"spec": {"podCIDR": "10.244.1.0/24"}}, MERGE))[1]
    assert node["spec"]["podCIDRs"] == ["10.244.1.0/24"]
    status, answer = await client.ask("PATCH", f"{NODES}/a", {"spec": {"podCIDR": "10.244.2.0/24", "podCIDRs": ["10.244.2.0/24"]}}, MERGE)
    assert status == 422 and "may not change podCIDR" in answer["message"]


@pytest.mark.parametrize("cidrs", [["x"], ["10.244.1.0/24", "10.244.2.0/24"], ["10.244.1.0/24", "fd00::/64", "fd01::/64"]])
async def test_pod_cidrs_are_one_of_each_family(client, cidrs):
    assert (await client.ask("POST", NODES, {"metadata": {"name": "a"}, "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs}}))[0] == 422


async def test_annotations_are_strings_and_not_too_many(client):
    await client.make("a")
    assert (await client.ask("PATCH", f"{NODES}/a", {"metadata": {"annotations": {"a": 7}}}, MERGE))[0] == 400
    assert (await client.ask("PATCH", f"{NODES}/a", {"metadata": {"annotations": {"a": "x" * (256 << 10)}}}, MERGE))[0] == 422


# ---- patches ------------------------------------------------------------------------------------------------------


async def test_a_merge_patch_replaces_lists_and_removes_what_is_null(client):
    await client.make("a")
    await client.ask("PATCH", f"{NODES}/a/status", {"status": {"conditions": [{"type": "A"}, {"type": "B"}], "x": 1}}, MERGE)
    node = (await client.ask("PATCH", f"{NODES}/a/status", {"status": {"conditions": [{"type": "C"}], "x": None}}, MERGE))[1]
    assert node["status"] == {"conditions": [{"type": "C"}]}


async def test_a_strategic_merge_patch_merges_conditions_and_addresses_by_type(client):
    await client.make("a")
    first = {
        "conditions": [{"type": "A", "status": "True", "reason": "r"}, {"type": "B", "status": "True"}],
        "addresses": [{"type": "Hostname", "address": "a"}],
    }
    await client.ask("PATCH", f"{NODES}/a/status", {"status": first}, MERGE)
    second = {"conditions": [{"type": "A", "status": "False"}, {"type": "C", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}
    node = (await client.ask("PATCH", f"{NODES}/a/status", {"status": second}, STRATEGIC))[1]
    assert node["status"]["conditions"] == [{"type": "A", "status": "False", "reason": "r"}, {"type": "B", "status": "True"}, {"type": "C", "status": "True"}]
    assert [a["type"] for a in node["status"]["addresses"]] == ["Hostname", "InternalIP"]
    gone = {"status": {"conditions": [{"type": "B", "$patch": "delete"}]}}
    assert [c["type"] for c in (await client.ask("PATCH", f"{NODES}/a/status", gone, STRATEGIC))[1]["status"]["conditions"]] == ["A", "C"]
    anew = {"status": {"conditions": [{"$patch": "replace"}, {"type": "D"}]}}
    assert (await client.ask("PATCH", f"{NODES}/a/status", anew, STRATEGIC))[1]["status"]["conditions"] == [{"type": "D"}]
    assert (await client.ask("PATCH", f"{NODES}/a/status", {"status": {"conditions": [{"status": "True"}]}}, STRATEGIC))[0] == 400


async def test_a_strategic_merge_patch_replaces_taints(client):
    """They have no patch strategy in the API's types."""
    await client.make("a", taints=[{"key": "x"}, {"key": "y"}])
    assert (await client.ask("PATCH", f"{NODES}/a", {"spec": {"taints": [{"key": "z"}]}}, STRATEGIC))[1]["spec"]["taints"] == [{"key": "z"}]


@pytest.mark.parametrize("kind", ["application/json", "application/json-patch+json", "text/plain"])
async def test_a_patch_says_what_kind_it_is(client, kind):
    await client.make("a")
    assert (await client.ask("PATCH", f"{NODES}/a", {"metadata": {}}, kind))[0] == 415


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"7"])
async def test_a_body_is_an_object(client, body):
    assert (await client.ask("POST", NODES, body))[0] == 400


# ---- lists --------------------------------------------------------------------------------------------------------


async def test_a_list_in_pages_is_the_list_as_it_was_at_its_beginning(client):
    for name in "abcde":
        await client.make(name)
    status, page = await client.ask("GET", NODES, limit=2)
    names, version = [n["metadata"]["name"] for n in page["items"]], page["metadata"]["resourceVersion"]
    assert page["metadata"]["remainingItemCount"] == 3
    await client.ask("DELETE", f"{NODES}/c")
    await client.make("bb")
    await client.annotate("e")
    while token := page["metadata"].get("continue"):
        status, page = await client.ask("GET", NODES, limit=2, **{"continue": token})
        assert (status, page["metadata"]["resourceVersion"]) == (200, version)
        names += [n["metadata"]["name"] + n["metadata"].get("annotations", {}).get("a", "") for n in page["items"]]
    assert names == list("abcde")
    assert [n["metadata"]["name"] for n in (await client.ask("GET", NODES))[1]["items"]] == ["a", "b", "bb", "d", "e"]


async def test_the_rest_of_a_list_is_not_kept_for_ever(client):
    for name in "abc":
        await client.make(name)
    token = (await client.ask("GET", NODES, limit=1))[1]["metadata"]["continue"]
    await client.make("d")
    client.server.compact()
    status, answer = await client.ask("GET", NODES, limit=1, **{"continue": token})
    assert (status, answer["reason"]) == (410, "Expired")
    assert (await client.ask("GET", NODES, **{"continue": "nonsense"}))[0] == 400


# ---- watches ------------------------------------------------------------------------------------------------------


async def test_a_watch_tells_all_that_came_after_its_version_in_order(client):
    first = await client.make("a")
    second = await client.make("b")
    stream = await client.watch(revision(first))
    third = await client.annotate("a")
    await client.ask("DELETE", f"{NODES}/b")
    assert await client.lines(stream, 3) == [("ADDED", "b", revision(second)), ("MODIFIED", "a", revision(third)), ("DELETED", "b", revision(third) + 1)]


async def test_a_watch_without_a_version_begins_with_what_there_is(client):
    node = await client.make("a")
    stream = await client.watch(0)
    assert await client.lines(stream, 1) == [("ADDED", "a", revision(node))]


async def test_a_watch_from_a_forgotten_version_is_told_inside_the_stream(client):
    first = await client.make("a")
    await client.make("b")
    client.server.compact()
    stream = await client.watch(revision(first))
    assert stream.status == 200
    assert await client.lines(stream, 2) == [("ERROR", None, 410)], "and the stream ends"


async def test_history_is_bounded(make_client):
    client = await make_client(keep=8)
    first = await client.make("a")
    for number in range(20):
        await client.annotate("a", str(number))
    assert await client.lines(await client.watch(revision(first)), 1) == [("ERROR", None, 410)]
    assert len(await client.lines(await client.watch(client.server.objects.revision - 8), 8)) == 8


async def test_bookmarks_come_to_who_wants_them_and_carry_a_version_only(make_client):
    client = await make_client(bookmark_s=0.02)
    version = revision(await client.make("a"))
    wants, not_ = await client.watch(version, allowWatchBookmarks="true"), await client.watch(version)
    assert await client.lines(wants, 2) == [("BOOKMARK", None, version)] * 2
    changed = await client.annotate("a")
    assert await client.lines(not_, 1) == [("MODIFIED", "a", revision(changed))]


async def test_the_server_ends_a_watch_after_its_time(client):
    version = revision(await client.make("a"))
    stream = await client.watch(version, timeoutSeconds="1", allowWatchBookmarks="true")
    assert await client.lines(stream, 9) == [("BOOKMARK", None, version)], "the last thing said, then the end"


async def test_a_compaction_does_not_disturb_a_watch_that_is_up_to_date(client):
    version = revision(await client.make("a"))
    stream = await client.watch(version)
    client.server.compact()
    await client.annotate("a")
    assert await client.lines(stream, 1) == [("MODIFIED", "a", version + 1)]


# ---- rights -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", NODES, True),
        ("GET", f"{NODES}?watch=1&timeoutSeconds=1", True),
        ("GET", f"{NODES}/a", True),
        ("PATCH", f"{NODES}/a/status", True),
        ("PATCH", f"{NODES}/a", False),
        ("PUT", f"{NODES}/a/status", False),
        ("DELETE", f"{NODES}/a", False),
        ("POST", NODES, False),
        ("GET", "/api/v1/namespaces/x/pods/y", True),
    ],
)
async def test_a_token_may_do_what_its_role_says(make_client, method, path, allowed):
    from tweed.lab.stores.kube import RULES

    client = await make_client(tokens={"agent": [*RULES, ("get", "pods")]})
    client.server.objects.create({"metadata": {"name": "a"}})
    client.server.pods["x", "y"] = "a"
    body = None if method == "GET" else {"metadata": {}}
    kind = MERGE if method == "PATCH" else "application/json"
    async with client.session.request(
        method, client.server.url + path, json=body, headers={"Authorization": "Bearer agent"} | ({"Content-Type": kind} if body else {})
    ) as response:
        assert (response.status != 403) is allowed
    assert (await client.ask("GET", NODES))[0] == 401
    assert (await client.ask("GET", NODES, token="other"))[0] == 401


# ---- faults -------------------------------------------------------------------------------------------------------


async def test_it_fails_when_told_to(client):
    client.server.fail(429, 1, retry_after=3)
    client.server.fail(500, 2)
    async with client.session.get(client.server.url + NODES) as response:
        assert (response.status, response.headers["Retry-After"]) == (429, "3")
    assert [(await client.ask("GET", NODES))[0] for _ in range(3)] == [500, 500, 200]


async def test_a_dropped_watch_breaks_and_a_stalled_one_is_silent(client):
    version = revision(await client.make("a"))
    dropped = await client.watch(version)
    client.server.drop()
    with pytest.raises(aiohttp.ClientError):
        await client.lines(dropped, 1)
    stalled = await client.watch(version)
    client.server.stall()
    changed = await client.annotate("a")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(stalled.content.readline(), 0.1)
    client.server.stall(False)
    assert await client.lines(stalled, 1) == [("MODIFIED", "a", revision(changed))]
