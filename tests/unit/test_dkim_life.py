"""The life of signing keys: no signature is ever met by a DNS without its key, whatever happens in which order.

The state machine plays the organisation (runs of the playbook that may end at any step), its hosts, name servers that
lag, resolvers that remember what they did not find, and mail that is under way for a week.
"""

from __future__ import annotations

import copy
import datetime
from typing import Any

import pytest
from conftest import PUBLIC_KEY, load_model
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import dkim_life
import estate_model

START = datetime.datetime(2026, 11, 28, 6, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)
WAIT = 600  # seconds that "no such name" may be cached
UNDER_WAY = 7.5 * DAY  # mail waits for 5 days, signatures are valid for 7
DOMAIN = "example.org"
MODEL = load_model("lab")
MODEL["domains"] = {DOMAIN: MODEL["domains"][DOMAIN] | {"sign": {"signer": "smtp"}}}
MODEL["dkim"] = {"rotate_days": 30, "keep_days": 8, "revoked_days": 0}
MODEL["arc"] = {"enabled": False, "trusted_sealers": []}
MODEL["dkim_public_keys"] = {}
BOUNCES = copy.deepcopy(MODEL)
for gateway in MODEL["gateways"]:  # so that there is one domain to sign for
    MODEL["hosts"][gateway]["fqdn"] = f"{gateway}.example.net"
SERVERS = ("a", "b")


class World:
    """Everything outside the pure functions, as small as it can be."""

    def __init__(self, model: dict[str, Any] | None = None) -> None:
        self.model = copy.deepcopy(model or MODEL)
        self.model["dkim_keys"] = {}
        self.now = START
        self.files: dict[str, dict[str, dict[str, str]]] = {}
        self.signs: dict[tuple[str, str], str | None] = {}
        self.shown: dict[str, dict[str, str]] = {server: {} for server in SERVERS}
        self.absence: dict[str, datetime.datetime] = {}
        self.mail: list[tuple[str, datetime.datetime]] = []
        self.number = 0
        for slot in dkim_life.slots(self.estate):
            for host in slot.hosts:
                self.files.setdefault(host, {}).setdefault(slot.use, {})
                self.signs[host, slot.domain] = None

    @property
    def estate(self) -> estate_model.Estate:
        return estate_model.parse(self.model)

    @property
    def primary(self) -> dict[str, str]:
        """What the first server is told to show."""
        return {
            record: "" if key.revoked else key.public_key
            for record, key in self.estate.made_keys.items()
            if key.state != "removed"
        }

    def view(self) -> dict[str, dict[str, Any]]:
        found = {}
        for record, wanted in dkim_life.looks(self.estate, self.files, self.now).items():
            there = [self.shown[server].get(record) for server in SERVERS]
            found[record] = {
                "right": all(key == wanted["expected"] for key in there),
                "absent": all(key is None for key in there),
                "why": f"servers show {there}",
                "wait": WAIT,
            }
        return found

    def states(self) -> dict[str, str]:
        return {record.partition(".")[0]: key["state"] for record, key in self.model["dkim_keys"].items()}

    def run(self, steps: int = 99, lag: bool = False, **options: Any) -> dict[str, Any]:
        """One run of the playbook that ends after a number of steps; ``lag``: only the first server hears of it."""
        left = iter(range(steps))
        moves: dict[str, Any] = {}

        def goes_on() -> bool:
            return next(left, None) is not None

        def publish() -> None:
            for server in SERVERS[: 1 if lag else 2]:
                self.shown[server] = dict(self.primary)

        if not goes_on():
            return moves
        work = dkim_life.wanted(self.estate, self.files, self.view(), self.now, **options)
        for record, place in {**work["new"], **work["share"]}.items():
            first = next((h for h in place["hosts"] if record in self.files[h][place["use"]]), None)
            if first is None:
                self.number += 1
                key = PUBLIC_KEY[:-12] + f"{self.number:08}" + PUBLIC_KEY[-4:]
            else:
                key = self.files[first][place["use"]][record]
            for host in place["hosts"]:
                if not goes_on():
                    return moves
                self.files[host][place["use"]].setdefault(record, key)
        if not goes_on():
            return moves
        self.model["dkim_keys"] = dkim_life.made(self.estate, work, self.files, self.now)
        if not goes_on():
            return moves
        publish()
        moves = dkim_life.moves(self.estate, self.files, self.view(), self.now, **options)
        for host, uses in moves["apply"].items():
            if not goes_on():
                return moves
            for record, key in moves["keys"].items():
                domain = record.partition("._domainkey.")[2]
                if key["use"] in uses and host in key["hosts"] and key["state"] == "signing":
                    self.signs[host, domain] = record
        for host, uses in moves["absent"].items():
            if not goes_on():
                return moves
            for use, records in uses.items():
                for record in records:
                    self.files[host][use].pop(record, None)
        if not goes_on():
            return moves
        self.model["dkim_keys"] = dkim_life.done(moves, self.files, now=self.now)
        if goes_on():
            publish()
        return moves

    def send(self) -> None:
        """A message from every host that signs and has the key to do so."""
        for (host, _domain), record in self.signs.items():
            if record and any(record in there for there in self.files[host].values()):
                self.mail.append((record, self.now))

    def check(self) -> None:
        """Every signature of a message that may still be under way can be verified at every server."""
        self.mail = [(record, when) for record, when in self.mail if self.now <= when + UNDER_WAY]
        for record, when in self.mail:
            for server in SERVERS:
                assert self.shown[server].get(record), f"{record} of {when} is not shown by {server} at {self.now}"
            assert self.absence.get(record, START) <= self.now, f"{record}: a resolver holds that there is none"


class Life(RuleBasedStateMachine):
    """What may happen, in any order."""

    @initialize(shared=st.booleans())
    def begin(self, shared: bool) -> None:
        model = copy.deepcopy(MODEL)
        model["dkim"]["rotate_days"] = 2  # so that much happens in few steps
        if shared:
            model["domains"][DOMAIN].pop("sign")
            model["arc"] = {"enabled": True, "domain": DOMAIN, "selector": None, "trusted_sealers": []}
        self.world = World(model)
        self.world.run()
        self.world.send()

    @rule(steps=st.integers(0, 12), lag=st.booleans())
    def interrupted_run(self, steps: int, lag: bool) -> None:
        self.world.run(steps, lag)
        self.world.send()

    @rule()
    def run(self) -> None:
        self.world.run()
        self.world.send()

    @rule(hours=st.sampled_from([0.05, 0.2, 24, 60, 24 * 6]))
    def time_passes(self, hours: float) -> None:
        self.world.send()
        self.world.now += datetime.timedelta(hours=hours)

    @rule()
    def second_server_catches_up(self) -> None:
        self.world.shown["b"] = dict(self.world.shown["a"])

    @precondition(lambda self: any(self.world.signs.values()))
    @rule(server=st.sampled_from(SERVERS))
    def stranger_asks_for_tomorrows_name(self, server: str) -> None:
        for record in self.world.primary:
            if record not in self.world.shown[server]:
                self.world.absence[record] = self.world.now + datetime.timedelta(seconds=WAIT)

    @rule()
    def what_is_known_of_the_last_run_is_lost(self) -> None:
        """Another checkout of the inventory: what a run wrote down last is not there; but keys are."""
        keys = self.world.model["dkim_keys"]
        for record in [record for record, key in keys.items() if key["state"] == "published"]:
            if "published" in keys[record]["dates"]:
                del keys[record]["dates"]["published"]

    @invariant()
    def nothing_fails(self) -> None:
        if hasattr(self, "world"):
            self.world.check()
            for (_host, _domain), record in self.world.signs.items():
                key = self.world.model["dkim_keys"].get(record or "")
                assert key is None or key["state"] in ("published", "signing"), f"{record} signs and is {key['state']}"


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_first_key_is_made_published_and_signs_in_one_run():
    world = World()
    moves = world.run()
    assert world.states() == {"20261128a": "signing"}
    assert moves["did"][-1] == "20261128a._domainkey.example.org signs the mail of example.org (smtp)."
    assert world.run()["did"] == []
    assert world.run()["problems"] == []


def test_each_gateway_has_a_key_of_its_own_for_its_bounces():
    world = World(BOUNCES)
    world.run()
    assert {(host, domain): record for (host, domain), record in world.signs.items() if host.startswith("mail-gw")} == {
        (name, f"{name}.example.org"): f"20261128a._domainkey.{name}.example.org" for name in ("mail-gw1", "mail-gw2")
    }
    assert [*world.files["mail-gw1"]["dkim"]] == ["20261128a._domainkey.mail-gw1.example.org"]


def test_two_rotations_take_each_key_through_all_states_and_never_use_a_name_twice():
    world = World()
    world.run()
    seen = []
    for _day in range(100):
        world.send()
        world.now += DAY
        world.run()
        world.check()
        seen.append(tuple(world.states().values()))
    assert list(dict.fromkeys(seen)) == [
        ("signing",), ("signing", "published"), ("retired", "signing"), ("removed", "signing"),
        ("removed", "signing", "published"), ("removed", "retired", "signing"), ("removed", "removed", "signing"),
        ("removed", "removed", "signing", "published"), ("removed", "removed", "retired", "signing"),
    ]  # fmt: skip
    assert list(world.states()) == ["20261128a", "20261228a", "20270128a", "20270228a"]
    assert len(world.files["smtp"]["dkim"]) == 2


def test_next_key_waits_for_the_last_server_and_then_for_what_caches_remember():
    world = World()
    world.run()
    world.now += 30 * DAY
    moves = world.run(lag=True)
    assert world.states() == {"20261128a": "signing", "20261228a": "published"}
    assert "waits until all name servers show it: servers show" in moves["waits"][0]
    world.shown["b"] = dict(world.shown["a"])
    world.now += datetime.timedelta(seconds=1)
    assert "caches may hold that it does not exist" in world.run()["waits"][0]
    world.now += datetime.timedelta(seconds=WAIT - 1)
    assert world.run()["did"] == []
    world.now += datetime.timedelta(seconds=1)
    assert world.run()["did"][0].startswith("20261228a._domainkey.example.org signs")
    assert world.states() == {"20261128a": "retired", "20261228a": "signing"}


def test_shared_key_retires_only_when_its_successor_signs_on_every_host():
    model = copy.deepcopy(MODEL)
    model["domains"][DOMAIN].pop("sign")
    model["arc"] = {"enabled": True, "domain": DOMAIN, "selector": None, "trusted_sealers": []}
    world = World(model)
    world.run()
    assert world.files["mail-gw1"] == world.files["mail-gw2"], "both have the one key"
    world.now += 30 * DAY
    world.run()
    world.now += DAY
    moves = dkim_life.moves(world.estate, world.files, world.view(), world.now)
    half = dkim_life.done(moves, ["mail-gw1"])
    assert [key["state"] for key in half.values()] == ["signing", "published"]
    assert [key["state"] for key in dkim_life.done(moves, ["mail-gw1", "mail-gw2"]).values()] == ["retired", "signing"]


def test_compromised_key_is_replaced_and_revoked_in_one_run_and_shown_so_for_a_month():
    world = World()
    world.run()
    old = "20261128a._domainkey.example.org"
    world.run(compromised=[old])
    assert world.states() == {"20261128a": "retired", "20261128b": "signing"}
    assert world.shown["b"][old] == ""
    assert old not in world.files["smtp"]["dkim"]
    world.now += 29 * DAY
    world.run()
    assert world.states()["20261128a"] == "retired"
    world.now += DAY
    world.run()
    assert world.states()["20261128a"] == "removed"
    assert old not in world.shown["a"]


def test_host_that_was_built_anew_gets_another_key_and_its_old_mail_still_verifies():
    world = World()
    world.run()
    world.send()
    world.files["smtp"]["dkim"].clear()
    world.run()
    assert world.states() == {"20261128a": "retired", "20261128b": "signing"}
    world.check()


def test_key_that_nobody_wrote_down_is_taken_before_another_is_made():
    world = World()
    world.run()
    world.model["dkim_keys"] = {}
    world.run()
    assert world.states() == {"20261128a": "signing"}
    assert len(world.files["smtp"]["dkim"]) == 1


def test_name_that_dns_knows_is_not_used():
    world = World()
    for server in SERVERS:
        world.shown[server]["20261128a._domainkey.example.org"] = "somebody's"
    world.run()
    assert world.states() == {"20261128b": "signing"}


def test_host_that_does_not_answer_is_waited_for():
    world = World()
    world.run()
    world.now += 31 * DAY
    work = dkim_life.wanted(world.estate, {}, world.view(), world.now)
    assert (work["new"], work["share"]) == ({}, {})
    assert "smtp does not answer" in work["waits"][0]


def test_signing_key_that_vanished_from_dns_is_a_problem():
    world = World()
    world.run()
    del world.shown["b"]["20261128a._domainkey.example.org"]
    moves = dkim_life.moves(world.estate, world.files, world.view(), world.now)
    assert "must stand in DNS, or every signature that is made now fails" in moves["problems"][0]


def test_key_of_a_domain_that_is_signed_elsewhere_now_retires_and_goes():
    world = World()
    world.run()
    world.model["domains"][DOMAIN].pop("sign")
    world.run()
    assert world.states() == {"20261128a": "retired"}
    world.now += 8 * DAY
    world.run()
    assert world.states() == {"20261128a": "removed"}


def test_revoked_days_show_an_empty_key_before_the_record_goes():
    world = World()
    world.model["dkim"]["revoked_days"] = 10
    for days in (0, 30, 1, 8):
        world.now += days * DAY
        world.run()
    assert world.states() == {"20261128a": "retired", "20261228a": "signing"}
    assert world.shown["a"]["20261128a._domainkey.example.org"] == ""
    world.now += 10 * DAY
    world.run()
    assert world.states()["20261128a"] == "removed"


def test_first_only_rotates_nothing():
    world = World()
    world.run(first_only=True)
    assert world.states() == {"20261128a": "signing"}
    world.now += 300 * DAY
    world.run(first_only=True)
    assert world.states() == {"20261128a": "signing"}


@pytest.mark.parametrize("text", ["2026-11-28T06:00:00+00:00", "2026-11-28T06:00:00", "2026-11-28T15:00:00+09:00"])
def test_times_are_utc(text):
    assert dkim_life.moment(text) == START


def test_zones_of_keys_hold_nothing_else_and_stay_when_the_last_key_is_gone():
    world = World()
    world.run()
    found = dkim_life.key_zones(world.estate)
    assert [record["name"] for record in found["example.org"]] == ["20261128a._domainkey.example.org"]
    world.model["dkim_keys"]["20261128a._domainkey.example.org"]["state"] = "removed"
    assert dkim_life.key_zones(world.estate) == {"example.org": []}
