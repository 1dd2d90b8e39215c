"""PostgreSQL as its clients, its neighbours and a stranger on the network see it."""

from __future__ import annotations

import re
import socket
import time

import pytest

PASSWORDS = {"lists": "the-lists'-password", "reports": "the-reports-password", "board": "the-boards-password"}
CHANGED = {"reports": "another-password-for-reports"}  # molecule/postgresql/side_effect.yml


def connect(host, role, database, sql="SELECT 1", password=None, options="sslmode=require"):
    """What psql says over TCP; without a password given, the role's own."""
    if password is None:
        marked = host.file("/var/tmp/second-half").exists
        password = (CHANGED if marked else {}).get(role, PASSWORDS.get(role, "no-password"))
    target = f"host=127.0.0.1 user={role} dbname={database} {options}"
    script = 'IFS= read -r PGPASSWORD; export PGPASSWORD; exec psql -XAtw -v ON_ERROR_STOP=1 -d "$1" -c "$2"'
    return host.run("printf '%%s\\n' %s | bash -c %s psql %s %s", password, script, target, sql)


def admin(host, sql, database="postgres"):
    """One answer to the administrator, by the Unix socket."""
    answer = host.run("runuser -u postgres -- psql -XAt -d %s -c %s", database, sql)
    assert answer.rc == 0, answer.stderr
    return answer.stdout.strip()


def test_role_logs_in_by_scram_over_tls(host):
    said = connect(host, "lists", "lists", "SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
    assert said.stdout.strip() == "TLSv1.3", said.stderr
    assert connect(host, "lists", "lists", options="sslmode=require require_auth=scram-sha-256").rc == 0 or (
        "require_auth" in connect(host, "lists", "lists", options="require_auth=scram-sha-256").stderr  # libpq 15
    )
    stored = admin(host, "SELECT DISTINCT left(rolpassword, 14) FROM pg_authid WHERE rolpassword IS NOT NULL")
    assert stored == "SCRAM-SHA-256$"


@pytest.mark.parametrize("password", ["wrong-password", "the-lists'-passwor", ""])
def test_wrong_password_is_refused(host, password):
    said = connect(host, "lists", "lists", password=password)
    assert said.rc == 2
    assert re.search("password authentication failed|no password supplied", said.stderr)


def test_role_without_password_cannot_log_in(host):
    assert "authentication failed" in connect(host, "keyless", "lists", password="anything").stderr


def test_connection_without_tls_is_refused(host):
    said = connect(host, "lists", "lists", options="sslmode=disable")
    assert said.rc == 2
    assert "no pg_hba.conf entry" in said.stderr


def test_tls_1_1_is_refused_and_1_2_is_not(host):
    admin_range = "sslmode=require ssl_min_protocol_version={0} ssl_max_protocol_version={0}"
    assert connect(host, "lists", "lists", options=admin_range.format("TLSv1.2")).rc == 0
    assert connect(host, "lists", "lists", options=admin_range.format("TLSv1.1")).rc == 2


def test_postgres_comes_in_as_itself_and_nobody_else_as_postgres(host):
    assert admin(host, "SELECT session_user") == "postgres"
    said = host.run("runuser -u nobody -- psql -XAtw -U postgres -d postgres -c 'SELECT 1'")
    assert said.rc == 2
    assert "authentication failed" in said.stderr
    assert connect(host, "postgres", "postgres", password="postgres").rc == 2


@pytest.mark.parametrize(("user", "database"), [("list", "mailman"), ("mailmanweb", "mailmanweb")])
def test_program_comes_in_by_the_socket_as_its_own_user_without_a_password(host, user, database):
    if not host.user(user).exists:
        host.check_output("useradd --system %s", user)
    script = "CREATE TEMPORARY TABLE mine (i int); SELECT session_user, inet_client_addr() IS NULL"
    said = host.run("cd /; runuser -u %s -- psql -XAtwq -d %s -c %s", user, database, script)
    assert said.stdout.strip() == f"{user}|t", said.stderr


@pytest.mark.parametrize(
    ("user", "role", "database", "sentence"),
    [
        ("nobody", "list", "mailman", "authentication failed"),
        ("www-data", "mailmanweb", "mailmanweb", "authentication failed"),
        ("mailmanweb", "list", "mailman", "authentication failed"),
        ("list", "mailmanweb", "mailmanweb", "authentication failed"),
        ("root", "list", "mailman", "authentication failed"),
        ("nobody", "nobody", "mailman", 'role "nobody" does not exist'),
        ("list", "list", "mailmanweb", "permission denied for database"),
        ("mailmanweb", "mailmanweb", "mailman", "permission denied for database"),
    ],
)
def test_another_user_does_not(host, user, role, database, sentence):
    if not host.user(user).exists:
        host.check_output("useradd --system %s", user)
    said = host.run("cd /; runuser -u %s -- psql -XAtw -U %s -d %s -c 'SELECT 1'", user, role, database)
    assert said.rc == 2
    assert sentence in said.stderr
    assert connect(host, role, database, password="anything").rc == 2


def test_unit_is_confined_and_the_server_was_never_root(host):
    unit = host.run("systemctl list-units --plain --no-legend 'postgresql@*'").stdout.split()[0]
    level = host.check_output("systemd-analyze security %s --no-pager | tail -n 1", unit)
    assert float(re.search(r"service: ([\d.]+)", level)[1]) <= 3.0
    process = host.check_output("systemctl show -p MainPID --value %s", unit)
    status = host.file(f"/proc/{process}/status").content_string
    assert re.search(r"NoNewPrivs:\s+1\n", status)
    assert re.search(r"CapBnd:\s+0+\n", status)


def test_trust_md5_and_passwords_in_clear_are_no_way_in(host):
    methods = admin(host, "SELECT DISTINCT auth_method FROM pg_hba_file_rules ORDER BY 1").split()
    assert methods == ["peer", "scram-sha-256"]
    assert admin(host, "SELECT count(*) FROM pg_hba_file_rules WHERE error IS NOT NULL") == "0"


@pytest.mark.parametrize(
    ("role", "database"),
    [("lists", "reports"), ("reports", "lists"), ("board", "reports"), ("lists", "postgres"), ("lists", "template1")],
)
def test_role_cannot_enter_a_database_that_is_not_its_own(host, role, database):
    said = connect(host, role, database)
    assert said.rc == 2
    assert "permission denied for database" in said.stderr


def test_reader_reads_what_the_owner_makes_and_changes_nothing(host):
    made = connect(host, "lists", "lists", "DROP TABLE IF EXISTS post; CREATE TABLE post AS SELECT '日本語' AS subject")
    assert made.rc == 0, made.stderr
    assert connect(host, "board", "lists", "SELECT subject FROM post").stdout.strip() == "日本語"
    for sql in ("INSERT INTO post VALUES ('x')", "DELETE FROM post", "CREATE TABLE mine (i int)"):
        assert "permission denied" in connect(host, "board", "lists", sql).stderr


def test_database_is_unicode_in_an_order_that_no_library_changes(host):
    assert admin(host, "SELECT pg_encoding_to_char(encoding), datcollate FROM pg_database WHERE datname = 'lists'") == (
        "UTF8|C.UTF-8"
    )


def test_extension_works_for_the_owner(host):
    assert connect(host, "lists", "lists", "SELECT similarity('mailman', 'mailman')").stdout.strip() == "1"


def test_statements_are_counted_and_no_password_is_among_them_or_in_the_log(host):
    connect(host, "lists", "lists", "SELECT 'counted' AS counted")
    assert int(admin(host, "SELECT count(*) FROM pg_stat_statements WHERE query LIKE '%AS counted%'")) > 0
    statements = admin(host, "SELECT query FROM pg_stat_statements") + host.run("cat /var/log/postgresql/*").stdout
    assert "lists" in statements
    assert not re.search("the-(lists'+|reports|boards)-password|another-password", statements)


def test_settings_are_the_given_and_the_tuned_ones_and_nothing_waits_for_a_restart(host):
    assert admin(host, "SHOW max_connections") == "60"
    assert admin(host, "SHOW data_checksums") == "on"
    assert admin(host, "SHOW archive_mode") == "on"
    total = int(re.search(r"MemTotal:\s+(\d+)", host.file("/proc/meminfo").content_string)[1]) // 1024
    buffers = int(admin(host, "SELECT setting::int * 8 / 1024 FROM pg_settings WHERE name = 'shared_buffers'"))
    assert min(8192, total // 8) * 0.7 <= buffers <= min(8192, total // 8)
    assert admin(host, "SELECT count(*) FROM pg_settings WHERE pending_restart") == "0"
    assert admin(host, "SELECT count(*) FROM pg_file_settings WHERE error IS NOT NULL") == "0"


def test_nobody_outside_reaches_it(host):
    addresses = host.run("ip -4 -o address show scope global").stdout
    address = re.search(r"inet ([\d.]+)/", addresses)[1]
    socket.create_connection((address, 22), timeout=5).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address, 5432), timeout=5)


def test_private_key_is_read_by_postgres_alone(host):
    key = admin(host, "SHOW ssl_key_file")
    assert host.run("runuser -u nobody -- cat %s", key).rc != 0
    assert host.file(key).mode == 0o600


def test_data_survives_a_restart_and_a_killed_server(host):
    text = str(time.time())
    connect(host, "reports", "reports", f"CREATE TABLE IF NOT EXISTS kept (t text); INSERT INTO kept VALUES ('{text}')")
    assert host.run("systemctl restart postgresql").rc == 0
    unit = host.run("systemctl list-units --plain --no-legend 'postgresql@*'").stdout.split()[0]
    host.run("kill -9 $(systemctl show -p MainPID --value %s)", unit)
    for _attempt in range(40):
        time.sleep(0.5)
        said = connect(host, "reports", "reports", f"SELECT count(*) FROM kept WHERE t = '{text}'")
        if said.rc == 0:
            break
    assert said.stdout.strip() == "1", said.stderr + host.run("journalctl --no-pager -n 30 -u %s", unit).stdout


def test_password_that_was_changed_is_refused(host):
    if not host.file("/var/tmp/second-half").exists:
        assert connect(host, "reports", "reports", password=CHANGED["reports"]).rc == 2
        return
    assert connect(host, "reports", "reports", password=CHANGED["reports"]).rc == 0
    assert connect(host, "reports", "reports", password=PASSWORDS["reports"]).rc == 2
