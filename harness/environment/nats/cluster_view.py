"""Who leads what in a cluster of servers, and who is behind: what each server says, and what that comes to.

Promises: a leader is one that says so itself and that most of the servers which keep the same thing follow. A leader
that was cut from its peers believes in itself for more than 15 s, and peers name one that has died until the next
election (4 to 9 s), so neither word alone is worth anything.

Does not: raise for what the network or a server does; a server that says nothing is in the view, with the reason.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass

from harness.environment.loopback_http import HttpError, exchange

META = "meta"
"""The group of all servers, which decides about streams and consumers."""

VIEW_TIMEOUT_S = 1.0
_PATH = "/jsz?accounts=true&streams=true&consumers=true"


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupView:
    """A group of servers (`meta`, a stream `ORDERS`, a consumer `ORDERS/payments`) as one of them sees it.

    leader: whom it follows, itself perhaps. others: the group's other servers, and whether each is up to date, which
    only the leader knows.
    """

    leader: str | None
    others: Mapping[str, bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterView:
    """What all servers say at one moment, by server name.

    heard: the groups that each belongs to, as it sees them. unheard: why others said nothing, in one clause each.
    """

    heard: Mapping[str, Mapping[str, GroupView]]
    unheard: Mapping[str, str]

    def leader_of(self, group: str) -> str | None:
        """The server that leads a group, None while nobody does."""
        for name, groups in self.heard.items():
            if group in groups and groups[group].leader == name:
                members = {name, *groups[group].others}
                followers = sum(self._follows(each, group) == name for each in members)
                if 2 * followers > len(members):
                    return name
        return None

    def why_behind(self, name: str) -> str | None:
        """None when a server is up to date in every group that it belongs to, else what is missing.

        One that has just started may not know yet what it belongs to; then others say so.
        """
        if name in self.unheard:
            return self.unheard[name]
        if META not in self.heard[name]:
            return "it is not one of a cluster"
        for group in self._groups_with(name):
            leader = self.leader_of(group)
            if leader is None:
                return f"{group} has no leader: {self.opinions(group)}"
            if leader != name and not self.heard[leader][group].others.get(name):
                return f"{leader}, which leads {group}, does not find it up to date"
        return None

    def knows(self, group: str) -> bool:
        """Whether any server that was heard belongs to this group."""
        return any(group in groups for groups in self.heard.values())

    def opinions(self, group: str) -> str:
        """Who follows whom in a group, for people."""
        said = [
            f"{name} follows {groups[group].leader or 'nobody'}"
            for name, groups in self.heard.items()
            if group in groups
        ]
        return ", ".join([*said, *(f"{name} says nothing ({why})" for name, why in self.unheard.items())])

    def _follows(self, name: str, group: str) -> str | None:
        groups = self.heard.get(name, {})
        return groups[group].leader if group in groups else None

    def _groups_with(self, name: str) -> list[str]:
        return list(
            dict.fromkeys(
                group
                for each, groups in self.heard.items()
                for group, view in groups.items()
                if name == each or name in view.others
            )
        )


async def look_at(servers: Mapping[str, str]) -> ClusterView:
    """Ask all servers at once. servers: the address of the monitoring of each, by server name."""
    answers = await asyncio.gather(*(_ask(address) for address in servers.values()))
    said = dict(zip(servers, answers, strict=True))
    return ClusterView(
        heard={name: answer for name, answer in said.items() if not isinstance(answer, str)},
        unheard={name: answer for name, answer in said.items() if isinstance(answer, str)},
    )


async def _ask(monitoring_address: str) -> dict[str, GroupView] | str:
    try:
        answer = await exchange(monitoring_address, "GET", _PATH, timeout_s=VIEW_TIMEOUT_S)
        return groups_in(json.loads(answer.body))
    except TimeoutError:
        return f"no answer within {VIEW_TIMEOUT_S:g} s"
    except (OSError, HttpError, ValueError) as error:
        return str(error) or type(error).__name__


def groups_in(document: object) -> dict[str, GroupView]:
    """The groups in what a server answers to `/jsz`. Raises ValueError when it makes no sense."""
    said = _mapping(document)
    clusters = {META: said.get("meta_cluster")}
    for account in _each(said.get("account_details")):
        for stream in _each(account.get("stream_detail")):
            clusters[str(stream["name"])] = stream.get("cluster")
            for consumer in _each(stream.get("consumer_detail")):
                clusters[f"{stream['name']}/{consumer['name']}"] = consumer.get("cluster")
    return {name: _group(_mapping(cluster)) for name, cluster in clusters.items() if cluster is not None}


def _group(cluster: Mapping[str, object]) -> GroupView:
    return GroupView(
        leader=str(cluster["leader"]) if cluster.get("leader") else None,
        others={
            str(replica["name"]): replica.get("current") is True and replica.get("offline") is not True
            for replica in _each(cluster.get("replicas"))
        },
    )


def _mapping(found: object) -> Mapping[str, object]:
    if not isinstance(found, dict):
        raise ValueError(f"{found!r} is not a JSON object")  # noqa: TRY004 - what a server says, not what was passed
    return found


def _each(found: object) -> list[Mapping[str, object]]:
    return [_mapping(each) for each in found] if isinstance(found, list) else []
