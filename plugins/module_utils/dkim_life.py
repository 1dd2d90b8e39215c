"""The life of signing keys that hosts make: published, signing, retired, removed (docs/dkim-keys.md).

Pure functions: what is known goes in, what is to be done and what is awaited comes out. ``playbooks/dkim_rotate.yml``
asks the hosts and the name servers, does the work, and writes a state down only after it is true.

The one rule: a signature is never met by a DNS without its key. A key signs only after all authoritative servers have
shown it for as long as an older "no such name" may be cached (RFC 2308 §5), and its record stays for
``estate_dkim.keep_days`` after its last signature, which is longer than mail waits in queues and than a signature is
valid. Only a key that is known to be compromised is revoked at once (empty ``p=``, RFC 6376 §3.6.1).
"""

from __future__ import annotations

import datetime
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from estate_dns import Record, zones
from estate_model import Estate, MadeKey, bounce_signers, list_domains

#: Days for which a compromised key is shown as revoked, at least: its signatures may be made by others for a long time.
COMPROMISED_DAYS = 30
#: Record → public key, by host and use: the key files that a host has; a host that did not answer is missing.
Files = Mapping[str, Mapping[str, Mapping[str, str]]]
#: Record → ``right`` (all servers show the expected key and nothing else), ``absent`` (none shows anything), ``why``
#: (what is not right, a sentence), ``wait`` (seconds that "no such name" may be cached).
View = Mapping[str, Mapping[str, Any]]
Keys = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Slot:
    """What one key signs at a time: a use, a domain, and the hosts that share the key."""

    use: str
    domain: str
    hosts: tuple[str, ...]

    def __str__(self) -> str:
        return f"{'ARC seals' if self.use == 'arc' else 'mail'} of {self.domain} ({', '.join(self.hosts)})"


def slots(estate: Estate) -> list[Slot]:
    """Everything that is signed with keys which hosts make."""
    found = [
        Slot("dkim", domain.name, (domain.signer,))
        for domain in estate.domains.values()
        if domain.signer is not None and domain.makes_keys
    ]
    found += [Slot("dkim", name, (gateway,)) for name, gateway in bounce_signers(estate).items()]
    if estate.arc.enabled and (estate.arc.selector is None or estate.arc.rotate):
        found.append(Slot("arc", estate.arc.domain, estate.gateways))
        found += [Slot("arc", lists[0], (host,)) for host in estate.hosts if (lists := list_domains(estate, host))]
    return found


def moment(text: str) -> datetime.datetime:
    """A point in time from ISO 8601; without a zone it is UTC.

    :raises ValueError: when the text is none.
    """
    when = datetime.datetime.fromisoformat(text)
    return when.replace(tzinfo=datetime.UTC) if when.tzinfo is None else when.astimezone(datetime.UTC)


def iso(when: datetime.datetime) -> str:
    """A point in time as it is written down, in whole seconds."""
    return when.replace(microsecond=0).isoformat()


def plain(key: MadeKey) -> dict[str, Any]:
    """A key as ``dkim.json`` holds it."""
    found: dict[str, Any] = {
        "use": key.use,
        "hosts": list(key.hosts),
        "state": key.state,
        "dates": dict(key.dates),
        "public_key": key.public_key,
    }
    return found | ({"revoked": True} if key.revoked else {})


def all_keys(estate: Estate) -> Keys:
    """All keys of the model, to be changed."""
    return {record: plain(key) for record, key in estate.made_keys.items()}


def key_zones(estate: Estate) -> dict[str, list[Record]]:
    """Zone → records of the made keys; also the zones in which the last one has been removed."""
    records = {
        zone: [record for record in records if record["name"] in estate.made_keys]
        for zone, records in zones(estate).items()
    }
    concerned = {estate.zone_of(record) for record in estate.made_keys}
    return {zone: found for zone, found in records.items() if zone in concerned}


def looks(estate: Estate, files: Files, now: datetime.datetime) -> dict[str, dict[str, str]]:
    """What the name servers are to be asked: record → ``zone`` and ``expected`` public key (empty: revoked).

    Besides the keys there are these names that a next key could take.
    """
    wanted = {
        record: "" if key.revoked else key.public_key
        for record, key in estate.made_keys.items()
        if key.state != "removed"
    }
    for slot in slots(estate):
        for record in _names(slot, estate, files, now):
            wanted.setdefault(record, _orphans(slot, estate, files).get(record, ""))
    return {record: {"zone": estate.zone_of(record) or "", "expected": key} for record, key in sorted(wanted.items())}


def _orphans(slot: Slot, estate: Estate, files: Files) -> dict[str, str]:
    """Keys on the slot's first host that nobody wrote down: made by a run that was interrupted, or in a lost file."""
    there = files.get(slot.hosts[0], {}).get(slot.use, {})
    return {
        record: public
        for record, public in sorted(there.items(), reverse=True)
        if record.endswith(f"._domainkey.{slot.domain}")
        and record not in estate.made_keys
        and record not in estate.dkim_public_keys
    }


def _names(slot: Slot, estate: Estate, files: Files, now: datetime.datetime) -> list[str]:
    """Names for the slot's next key in the order of preference: what is there already, then those of the day."""
    day = [f"{now:%Y%m%d}{letter}._domainkey.{slot.domain}" for letter in string.ascii_lowercase[:8]]
    taken = {*estate.made_keys, *estate.dkim_public_keys}
    taken |= {record for uses in files.values() for there in uses.values() for record in there}
    return [*_orphans(slot, estate, files), *(record for record in day if record not in taken)]


def wanted(
    estate: Estate,
    files: Files,
    view: View,
    now: datetime.datetime,
    *,
    compromised: Iterable[str] = (),
    first_only: bool = False,
) -> dict[str, Any]:
    """Which keys must be made, or handed to a further host, before anything else.

    :param compromised: records whose private key others may have.
    :param first_only: nothing is rotated; only what cannot sign at all gets a key.
    :return: ``new`` (record → ``use``, ``hosts``), ``share`` (record → ``use``, ``hosts`` of keys that lack on one),
        ``waits`` (sentences).
    """
    new: dict[str, dict[str, Any]] = {}
    share: dict[str, dict[str, Any]] = {}
    waits = []
    bad = {*compromised, *(record for record, key in estate.made_keys.items() if "compromised" in key.dates)}
    for slot in slots(estate):
        silent = [host for host in slot.hosts if host not in files]
        if silent:
            waits.append(f"{slot}: {', '.join(silent)} does not answer; nothing is done meanwhile.")
            continue
        keys = [key for key in _of(slot, estate) if key.state in ("published", "signing") and key.record not in bad]
        usable = [key for key in keys if _held(key, slot, files)]
        for key in usable:
            lacking = [host for host in slot.hosts if files[host].get(slot.use, {}).get(key.record) != key.public_key]
            if lacking:
                share[key.record] = {"use": slot.use, "hosts": list(slot.hosts)}
        if any(key.state == "published" for key in usable):
            continue
        signing = next((key for key in usable if key.state == "signing"), None)
        if signing is not None:
            due = moment(signing.dates["signing"]) + datetime.timedelta(days=estate.key_life.rotate_days)
            if first_only or now < due:
                continue
        orphans = _orphans(slot, estate, files)
        for record in _names(slot, estate, files, now):
            shown = view.get(record, {})
            if record not in new and (shown.get("absent") or (record in orphans and shown.get("right"))):
                new[record] = {"use": slot.use, "hosts": list(slot.hosts)}
                break
        else:
            waits.append(f"{slot}: no free name for a key of {now:%Y-%m-%d}, or the name servers do not answer.")
    return {"new": new, "share": share, "waits": waits}


def _of(slot: Slot, estate: Estate) -> list[MadeKey]:
    """The keys for the same use and domain."""
    return [key for key in estate.made_keys.values() if (key.use, key.domain) == (slot.use, slot.domain)]


def _held(key: MadeKey, slot: Slot, files: Files) -> bool:
    """Whether at least one of the slot's hosts has the private key."""
    return any(files.get(host, {}).get(slot.use, {}).get(key.record) == key.public_key for host in slot.hosts)


def made(estate: Estate, work: Mapping[str, Any], files: Files, now: datetime.datetime) -> Keys:
    """All keys after ``wanted`` has been done: those that all their hosts have now are to be published.

    :param work: what :func:`wanted` returned.
    """
    keys = all_keys(estate)
    for record, place in {**work["new"], **work["share"]}.items():
        there = [files.get(host, {}).get(place["use"], {}).get(record) for host in place["hosts"]]
        if not there[0] or len(set(there)) > 1:
            continue
        keys.setdefault(record, {"use": place["use"], "state": "published", "dates": {"made": iso(now)}})
        keys[record] |= {"hosts": list(place["hosts"]), "public_key": there[0]}
    return dict(sorted(keys.items()))


def moves(
    estate: Estate,
    files: Files,
    view: View,
    now: datetime.datetime,
    *,
    compromised: Iterable[str] = (),
    first_only: bool = False,
) -> dict[str, Any]:
    """Which keys can move on, by what the hosts have and the name servers show.

    :return: ``keys`` after all moves, ``facts`` (the keys as they are if no host does its part), ``apply`` (host →
        uses for which it must be configured anew), ``absent`` (host → use → records whose files go), ``places`` (record
        → the hosts that must have done their part before the move is true), the time ``now``, and the sentences
        ``did``, ``waits``, ``problems``.
    """
    work = _Moves(estate, files, view, now, frozenset(compromised), first_only)
    known = slots(estate)
    for slot in known:
        work.slot(slot)
    work.left_over(known)
    return work.result()


class _Moves:
    """One pass over all keys; collects what changes."""

    def __init__(
        self,
        estate: Estate,
        files: Files,
        view: View,
        now: datetime.datetime,
        compromised: frozenset[str],
        first_only: bool,
    ) -> None:
        self.estate, self.files, self.view, self.now = estate, files, view, now
        self.first_only = first_only
        self.facts = all_keys(estate)
        for record in compromised:
            if record in self.facts:
                self.facts[record]["dates"].setdefault("compromised", iso(now))
        self.changes: Keys = {}
        self.places: dict[str, list[str]] = {}
        self.absent: dict[str, dict[str, list[str]]] = {}
        self.did: list[str] = []
        self.waits: list[str] = []
        self.problems: list[str] = [
            f"{record} is said to be compromised, but there is no such key." for record in compromised - {*self.facts}
        ]

    def result(self) -> dict[str, Any]:
        """All that was found."""
        keys = {**self.facts, **self.changes}
        apply: dict[str, list[str]] = {}
        for record, hosts in self.places.items():
            for host in hosts:
                if self.facts[record]["use"] not in apply.setdefault(host, []):
                    apply[host].append(self.facts[record]["use"])
        return {
            "now": iso(self.now),
            "keys": dict(sorted(keys.items())),
            "facts": dict(sorted(self.facts.items())),
            "apply": apply,
            "absent": self.absent,
            "places": self.places,
            "did": self.did,
            "waits": self.waits,
            "problems": self.problems,
        }

    def slot(self, slot: Slot) -> None:
        """The keys of one slot: the next one, the one that signs, those before it."""
        keys = {record: self.facts[record] for record in (key.record for key in _of(slot, self.estate))}
        coming = [record for record, key in keys.items() if key["state"] == "published"]
        signing = [record for record, key in keys.items() if key["state"] == "signing"]
        silent = [host for host in slot.hosts if host not in self.files]
        current = signing[0] if signing else None
        usable = current is not None and not silent and self._on_all(current, slot)
        doomed = current is not None and "compromised" in self.facts[current]["dates"]

        for record in coming:
            key = keys[record]
            if "compromised" in key["dates"] or (not silent and not self._on_some(record, slot)):
                self._move(slot, record, "removed")
                self.did.append(f"{record} is given up before it signed: its private key is lost or compromised.")
                self._drop(record, slot.hosts)
                continue
            urgent = current is None or doomed or (not silent and not usable)
            if self._shown(record) and not silent and self._may_sign(slot, record, urgent):
                self._switch(slot, record, current, doomed)
                current, usable, doomed = record, True, False
                break
        if current is None and not coming:
            self.waits.append(f"{slot}: there is no key yet.")
        if current is not None and not usable and not silent:
            self.problems.append(
                f"{current} signs the {slot}, but its private key is not there: another one is on its way."
            )
        if current in signing and current not in self.changes:
            self._must_be_shown(current, "every signature that is made now fails")
        for record, key in keys.items():
            if key["state"] == "retired":
                self._age(record, key, slot)

    def _on_all(self, record: str, slot: Slot) -> bool:
        public = self.facts[record]["public_key"]
        return all(self.files[host].get(slot.use, {}).get(record) == public for host in slot.hosts)

    def _on_some(self, record: str, slot: Slot) -> bool:
        public = self.facts[record]["public_key"]
        return any(self.files[host].get(slot.use, {}).get(record) == public for host in slot.hosts)

    def _shown(self, record: str) -> bool:
        """Whether all servers show a key that is to sign next; writes down since when."""
        dates = self.facts[record]["dates"]
        shown = self.view.get(record, {})
        if shown.get("right"):
            if "published" not in dates:
                dates["published"] = iso(self.now)
                self.did.append(f"{record} is shown by all name servers.")
            return True
        dates.pop("published", None)
        self.waits.append(f"{record} waits until all name servers show it: {shown.get('why', 'they were not asked')}.")
        return False

    def _may_sign(self, slot: Slot, record: str, urgent: bool) -> bool:
        """Whether nobody can remember any more that there was no such key, and all hosts have it."""
        if not self._on_all(record, slot):
            self.waits.append(f"{record} waits until all of {', '.join(slot.hosts)} have it.")
            return False
        since = moment(self.facts[record]["dates"]["published"])
        until = since + datetime.timedelta(seconds=int(self.view[record].get("wait", 0)))
        # Nobody has asked for the name of a key that nothing refers to; where nothing signs, waiting helps nobody.
        if urgent or self.now >= until:
            return not (self.first_only and not urgent)
        self.waits.append(f"{record} signs from {iso(until)} on: until then caches may hold that it does not exist.")
        return False

    def _switch(self, slot: Slot, record: str, before: str | None, doomed: bool) -> None:
        self._move(slot, record, "signing")
        self.did.append(f"{record} signs the {slot}.")
        if before is None:
            return
        self._move(slot, before, "retired")
        if doomed:
            self._revoke(before)
            self._drop(before, self.facts[before]["hosts"])
            self.did.append(f"{before} is revoked at once, because others may have it.")
        else:
            self.did.append(
                f"{before} signs no more; its record stays for {self.estate.key_life.keep_days} days, since mail that"
                " it signed is still under way."
            )

    def _age(self, record: str, key: Mapping[str, Any], slot: Slot | None) -> None:
        """A key that signs no more: revoked or removed when nothing that it signed can be under way."""
        life = self.estate.key_life
        dates = key["dates"]
        doomed = "compromised" in dates
        revoked_days = max(life.revoked_days, COMPROMISED_DAYS) if doomed else life.revoked_days
        hosts = slot.hosts if slot else tuple(key["hosts"])
        if key.get("revoked"):
            until = moment(dates["revoked"]) + datetime.timedelta(days=revoked_days)
        else:
            until = moment(dates["retired"]) + datetime.timedelta(days=0 if doomed else life.keep_days)
        if self.now < until:
            if not key.get("revoked"):
                self._must_be_shown(record, "mail that it signed and that is under way fails")
            self.waits.append(f"{record} stays in DNS{' as revoked' if key.get('revoked') else ''} until {iso(until)}.")
        elif self.first_only:
            return
        elif not key.get("revoked") and revoked_days:
            self._change(slot, record, hosts)
            self._revoke(record)
            self._drop(record, key["hosts"])
            self.did.append(f"{record} is revoked: nothing that it signed is under way any more.")
        else:
            self._change(slot, record, hosts)
            self.changes[record]["state"] = "removed"
            self.changes[record]["dates"]["removed"] = iso(self.now)
            self._drop(record, key["hosts"])
            self.did.append(f"{record} is removed from DNS and from {', '.join(key['hosts'])}.")

    def left_over(self, known: list[Slot]) -> None:
        """Keys for what is not signed with made keys any more: a domain that is gone, or has its keys in the vault."""
        taken = {(slot.use, slot.domain) for slot in known}
        for record, key in self.facts.items():
            if (key["use"], record.partition("._domainkey.")[2]) in taken:
                continue
            if key["state"] == "published":
                self._change(None, record, key["hosts"])
                self.changes[record] |= {"state": "removed"}
                self.changes[record]["dates"]["removed"] = iso(self.now)
                self._drop(record, key["hosts"])
                self.did.append(f"{record} is removed: nothing is to be signed with it.")
            elif key["state"] == "signing":
                self._change(None, record, key["hosts"])
                self.changes[record] |= {"state": "retired"}
                self.changes[record]["dates"]["retired"] = iso(self.now)
                self.did.append(f"{record} signs no more: the data model says so.")
            elif key["state"] == "retired":
                self._age(record, key, None)

    def _must_be_shown(self, record: str, otherwise: str) -> None:
        shown = self.view.get(record, {})
        if not shown.get("right"):
            why = shown.get("why", "the name servers were not asked")
            self.problems.append(f"{record} must stand in DNS, or {otherwise}: {why}.")

    def _change(self, slot: Slot | None, record: str, hosts: Iterable[str]) -> None:
        key = self.facts[record]
        self.changes.setdefault(record, {**key, "dates": dict(key["dates"])})
        self.places[record] = sorted({*hosts, *(slot.hosts if slot else ())})

    def _move(self, slot: Slot, record: str, state: str) -> None:
        self._change(slot, record, self.facts[record]["hosts"])
        self.changes[record]["state"] = state
        self.changes[record]["dates"][state] = iso(self.now)

    def _revoke(self, record: str) -> None:
        self.changes[record]["revoked"] = True
        self.changes[record]["dates"]["revoked"] = iso(self.now)

    def _drop(self, record: str, hosts: Iterable[str]) -> None:
        for host in hosts:
            self.absent.setdefault(host, {}).setdefault(self.facts[record]["use"], []).append(record)


def done(
    result: Mapping[str, Any], hosts: Iterable[str], gone: Iterable[str] = (), now: datetime.datetime | None = None
) -> Keys:
    """The keys to write down: a move is true when all hosts of its slot have done their part, and else is not made.

    :param result: what :func:`moves` returned.
    :param hosts: the hosts that have done it.
    :param gone: hosts that are not in the inventory any more, which cannot sign either.
    :param now: when they had done it, which is what is written down: the last signature is not older.
    """
    ready = {*hosts, *gone}
    failed = {host for places in result["places"].values() for host in places if host not in ready}
    keys = {record: dict(key) for record, key in result["facts"].items()}
    for record, places in result["places"].items():
        if not failed.intersection(places):
            key = result["keys"][record]
            dates = {name: iso(now) if now and date == result["now"] else date for name, date in key["dates"].items()}
            keys[record] = {**key, "dates": dates}
    return keys
