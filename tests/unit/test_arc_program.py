"""The daemon's own parts that need no mail server: configuration, numbers, and the wait for messages in progress."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from arc_data.outside import key_pair

import estate_arc

CONFIG = """
authserv_id = "mx.example.org"
gateway_name = "gw"
domain = "example.org"
selector = "arc2026"
verify_port = 1
seal_port = 2
metrics_port = 3
dns_servers = ["127.0.0.1"]
dns_seconds = 2
on_error = "unsealed"
on_dns_error = "fail"
on_unjudged = "tempfail"
unjudged_clients = ["127.0.0.0/8", "::1/128", "2001:db8:7::/48"]
workers = 0
stop_seconds = 1
"""


@pytest.fixture
def config_file(tmp_path) -> Path:
    path = tmp_path / "arc.toml"
    path.write_text(CONFIG)
    return path


def test_configuration_is_read(config_file):
    config = estate_arc.read_config(str(config_file))
    assert config.authserv_id == "mx.example.org"
    assert config.worker_count >= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"unsealed"', '"unseald"'), "on_error is 'unseald'; allowed: unsealed, tempfail"),
        (("selector", "selectr"), "unknown settings: selectr"),
        (('selector = "arc2026"\n', ""), "settings missing"),
        (('on_unjudged = "tempfail"', 'on_unjudged = "drop"'), "on_unjudged is 'drop'; allowed: unsealed, tempfail"),
        (("workers = 0", "workers ="), "Invalid value"),
    ],
)
def test_wrong_configuration_is_said_in_plain_words(config_file, change, message):
    config_file.write_text(CONFIG.replace(*change))
    with pytest.raises(ValueError, match=message):
        estate_arc.read_config(str(config_file))


@pytest.mark.parametrize(
    ("client", "judged"),
    [
        ("192.0.2.1", True), ("2001:db8::1", True), ("127.0.0.1", False), ("::1", False), ("2001:db8:7::9", False),
        ("", False),
    ],
)  # fmt: skip
def test_mail_of_others_must_have_been_judged(config_file, client, judged):
    assert estate_arc.read_config(str(config_file)).judges(client) is judged


def test_key_comes_from_the_credentials_of_the_service(config_file, tmp_path, monkeypatch):
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "arc.pem").write_bytes(key_pair()[0])
    assert estate_arc.read_sealer(estate_arc.read_config(str(config_file))).domain == "example.org"


def test_numbers_of_all_processes_are_added_and_survive_a_restart(tmp_path):
    name = 'estate_arc_messages_total{stage="verify"}'
    for row in (1, 2):
        counters = estate_arc.Counters(str(tmp_path), "verify")
        counters.use_row(row)
        counters.add(name, row)
    assert estate_arc.Counters(str(tmp_path), "verify").total(name) == 3


def test_numbers_are_shown_as_prometheus_wants_them(tmp_path):
    counters = estate_arc.Counters(str(tmp_path), "seal")
    counters.observe("seal", 0.003)
    counters.observe("seal", 100)
    text = estate_arc.exposition([counters], 7)
    assert 'estate_arc_seconds_bucket{stage="seal",le="0.002"} 0\n' in text
    assert 'estate_arc_seconds_bucket{stage="seal",le="0.005"} 1\n' in text
    assert 'estate_arc_seconds_bucket{stage="seal",le="+Inf"} 2\n' in text
    assert 'estate_arc_seconds_count{stage="seal"} 2\n' in text
    assert "# TYPE estate_arc_seconds histogram\n" in text
    assert text.count("# TYPE estate_arc_seconds ") == 1
    assert "estate_dmarc_spool_bytes 7\n" in text
    families = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(families) == len(set(families))


def test_counters_file_of_another_version_is_begun_anew(tmp_path):
    (tmp_path / "verify.counters").write_bytes(b"old")
    assert estate_arc.Counters(str(tmp_path), "verify").total(estate_arc.COUNTERS[0]) == 0


def test_stop_waits_for_messages_in_progress_and_no_longer_than_allowed():
    busy = estate_arc.Busy()
    busy.change(+1)
    assert not busy.wait_idle(0.05)
    threading.Timer(0.1, busy.change, (-1,)).start()
    begun = time.monotonic()
    assert busy.wait_idle(5)
    assert time.monotonic() - begun < 2
