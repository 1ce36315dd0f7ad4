"""The SQL port beyond loopback: under TLS, for readers who log in; the store's owner needs no login of theirs."""

from __future__ import annotations

import base64
import hashlib
import http.client
import socket
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import clickhouse_connect
import pytest
import yaml
from clickhouse_connect.driver.exceptions import ClickHouseError
from typer.testing import CliRunner

from tollspan.processor.cli.app import app
from tollspan.processor.counters import Counters
from tollspan.processor.errors import ConfigError
from tollspan.processor.runtime import RuntimeConfig
from tollspan.processor.senders import Readers, new_token
from tollspan.processor.service import Service, ServiceConfig
from tollspan.processor.sqlfront import SqlFront, front
from tollspan.processor.store import Store
from tollspan.processor.store.clickhouse import open_server
from tollspan.processor.store.location import Server
from tollspan.processor.tls import Tls, TlsFiles

from .test_tls import Certificates, certificates

__all__ = ["certificates"]

TOKEN, DIGEST = new_token()


@pytest.fixture
def readers(tmp_path: Path) -> Readers:
    path = tmp_path / "readers.yaml"
    path.write_text(yaml.safe_dump({"readers": [{"id": "grafana", "sha256": DIGEST}]}))
    return Readers(path, Counters())


@pytest.fixture
def guarded(store: Store, certificates: Certificates, readers: Readers) -> Iterator[tuple[int, Certificates]]:
    """A port with TLS and login."""
    opened = SqlFront(store, "127.0.0.1:0", tls=Tls(certificates.files), readers=readers, local_key="the key")
    yield int(opened.start().rpartition(":")[2]), certificates
    opened.stop()


def ask(
    port: int, certificates: Certificates | None, path: str = "/?query=SELECT%201", **headers: str
) -> tuple[int, dict[str, str], str]:
    connection: http.client.HTTPConnection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    if certificates is not None:
        context = ssl.create_default_context(cafile=str(certificates.ca_file))
        connection = http.client.HTTPSConnection("localhost", port, timeout=20, context=context)
    try:
        connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read().decode()
    finally:
        connection.close()


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


WAYS: dict[str, Callable[[str, str], tuple[str, dict[str, str]]]] = {
    "basic": lambda user, secret: ("/?query=SELECT%201", basic(user, secret)),
    "headers": lambda user, secret: (
        "/?query=SELECT%201",
        {"X_ClickHouse_User": user, "X_ClickHouse_Key": secret},
    ),
    "url": lambda user, secret: (f"/?query=SELECT%201&user={user}&password={secret}", {}),
    "bearer": lambda user, secret: ("/?query=SELECT%201", {"Authorization": f"Bearer {secret}"}),
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@ways
def test_a_reader_is_let_in_by_every_way_that_clickhouse_knows(
    guarded: tuple[int, Certificates], way: Callable[[str, str], tuple[str, dict[str, str]]]
) -> None:
    path, headers = way("grafana", TOKEN)
    assert ask(*guarded, path, **headers)[::2] == (200, "1\n")
    path, headers = way("default", TOKEN)
    assert ask(*guarded, path, **headers)[0] == 200


@ways
def test_nobody_else_is(
    guarded: tuple[int, Certificates], way: Callable[[str, str], tuple[str, dict[str, str]]]
) -> None:
    path, headers = way("grafana", "tsp_guess")
    status, answered, text = ask(*guarded, path, **headers)
    assert (status, answered["x-clickhouse-exception-code"]) == (403, "516")
    assert "AUTHENTICATION_FAILED" in text
    assert "tsp_guess" not in text


def test_a_token_is_its_readers_alone(guarded: tuple[int, Certificates]) -> None:
    assert ask(*guarded, **basic("somebody", TOKEN))[0] == 403
    assert ask(*guarded, **basic("tollspan-local", TOKEN))[0] == 403


@pytest.mark.parametrize("path", ["/?query=SELECT%201", "/", "/metrics", "/play"])
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Basic !"}, {"Authorization": "Bearer"}])
def test_without_a_login_a_browser_is_asked_for_one(
    guarded: tuple[int, Certificates], path: str, headers: dict[str, str]
) -> None:
    status, answered, _ = ask(*guarded, path, **headers)
    assert (status, answered["x-clickhouse-exception-code"]) == (401, "194")
    assert answered["www-authenticate"].startswith("Basic")


def test_health_checks_need_no_login(guarded: tuple[int, Certificates]) -> None:
    for path in ("/ping", "/replicas_status"):
        assert ask(*guarded, path)[::2] == (200, "Ok.\n")


def test_a_body_is_not_read_of_who_may_not_ask(guarded: tuple[int, Certificates]) -> None:
    port, certificates = guarded
    context = ssl.create_default_context(cafile=str(certificates.ca_file))
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as client,
    ):
        client.sendall(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000\r\n\r\nSELECT")
        assert b" 401 " in client.recv(4096)


def test_plain_text_is_not_answered_under_tls(guarded: tuple[int, Certificates]) -> None:
    with pytest.raises((http.client.BadStatusLine, ConnectionError)):
        ask(guarded[0], None)
    assert ask(*guarded, **basic("grafana", TOKEN))[0] == 200


def test_a_stock_client_gets_in_with_user_and_password(guarded: tuple[int, Certificates]) -> None:
    port, certificates = guarded
    options: dict[str, Any] = {
        "host": "localhost",
        "port": port,
        "interface": "https",
        "ca_cert": str(certificates.ca_file),
        "username": "grafana",
    }
    client = clickhouse_connect.get_client(password=TOKEN, **options)
    assert client.query("SELECT 1").result_rows == [(1,)]
    client.close()
    with pytest.raises(ClickHouseError, match="AUTHENTICATION_FAILED"):
        clickhouse_connect.get_client(password="wrong", **options)


def test_a_store_url_names_user_password_and_authority(
    guarded: tuple[int, Certificates], store: Store, readers: Readers
) -> None:
    port, certificates = guarded
    place = Server("localhost", port, "grafana", TOKEN, store.database, True, {"ca_cert": str(certificates.ca_file)})
    with open_server(place, create=False).detached_reader() as reader:
        assert reader.rows("SELECT count() AS n FROM ledger") == [{"n": 0}]


def test_readers_may_be_taken_away_while_it_runs(
    guarded: tuple[int, Certificates], readers: Readers, tmp_path: Path
) -> None:
    assert ask(*guarded, **basic("grafana", TOKEN))[0] == 200
    (tmp_path / "readers.yaml").write_text("readers: []\n")
    assert readers.reload()
    assert ask(*guarded, **basic("grafana", TOKEN))[0] == 403


def test_a_renewed_certificate_is_served(guarded: tuple[int, Certificates]) -> None:
    port, certificates = guarded

    def serial() -> str:
        context = ssl.create_default_context(cafile=str(certificates.ca_file))
        with (
            socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as client,
        ):
            return str(client.getpeercert()["serialNumber"])  # type: ignore[index]

    before = serial()
    certificates.renew()
    assert serial() != before


def test_a_handshake_that_stalls_and_a_request_that_drips_are_given_up(
    guarded: tuple[int, Certificates], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front, "HANDSHAKE_S", 0.3)
    monkeypatch.setattr(front, "READ_S", 1.0)
    with socket.create_connection(("127.0.0.1", guarded[0]), timeout=20) as client:
        assert client.recv(10) == b""
    plain = SqlFront(store, "127.0.0.1:0")
    port = int(plain.start().rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        began = time.monotonic()
        try:
            while time.monotonic() - began < 15:
                client.sendall(b"G")
                time.sleep(0.1)
            pytest.fail("it waits for ever")
        except OSError:
            pass
    assert ask(port, None)[0] == 200
    plain.stop()


@pytest.mark.parametrize("with_tls", [False, True])
@pytest.mark.parametrize("with_readers", [False, True])
def test_an_open_address_needs_both_or_the_word_for_it(
    store: Store, certificates: Certificates, readers: Readers, with_tls: bool, with_readers: bool
) -> None:
    options = {
        "tls": Tls(certificates.files) if with_tls else None,
        "readers": readers if with_readers else None,
    }
    for address in ("0.0.0.0:0", "[::]:0", "192.0.2.1:8123"):
        if with_tls and with_readers:
            SqlFront(store, address, **options)  # type: ignore[arg-type]
        else:
            with pytest.raises(ConfigError, match="open to other machines") as caught:
                SqlFront(store, address, **options)  # type: ignore[arg-type]
            assert ("--tls-cert" in str(caught.value)) is not with_tls
            assert "--readers" in str(caught.value)
        SqlFront(store, address, insecure_listen=True, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("tls", "scheme"), [(False, "http"), (True, "https")])
def test_the_stores_owner_asks_through_the_service_without_a_login_of_its_own(
    tmp_path: Path, store_directory: Path, certificates: Certificates, readers: Readers, tls: bool, scheme: str
) -> None:
    """As `tollspan query` does beside a running service."""
    service = Service(
        ServiceConfig(
            runtime=RuntimeConfig(store=f"chdb://{store_directory}?database=owned_{scheme}", journal=tmp_path / "j"),
            listen="127.0.0.1:0",
            http=None,
            sql="0.0.0.0:0" if tls else "127.0.0.1:0",
            tls=TlsFiles(certificates.files.certificate, certificates.files.key) if tls else None,
            readers=tmp_path / "readers.yaml",
        )
    )
    service.start()
    try:
        assert service.sql_url.startswith(f"{scheme}://")
        file = store_directory / "serve.json"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        said = yaml.safe_load(file.read_text())
        assert (said.get("sql_tls", False), bool(said["sql_key"])) == (tls, True)
        assert said["sql_key"] not in service.metrics()
        port = int(service.sql_address.rpartition(":")[2])
        assert ask(port, certificates if tls else None)[0] == 401
        code = (
            "from tollspan.processor.store import connect_for_query; import sys;"
            "r = connect_for_query(sys.argv[1]); print(r.rows('SELECT count() AS n FROM ledger'))"
        )
        url = f"chdb://{store_directory}?database=owned_{scheme}"
        done = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, timeout=60)
        assert done.stdout.strip() == "[{'n': 0}]", done.stderr
    finally:
        service.runtime.store.execute(f"DROP DATABASE owned_{scheme}")
        service.stop()


def test_the_command_makes_what_the_file_of_readers_needs(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["token", "grafana", "--reader"])
    assert result.exit_code == 0
    name, token = result.output.splitlines()[1].split()
    path = tmp_path / "readers.yaml"
    path.write_text("readers:\n" + result.output.splitlines()[-1] + "\n")
    found = Readers(path, Counters())
    assert found.admits(name, token)
    assert not found.admits(name, token + "x")
    assert hashlib.sha256(token.encode()).hexdigest() in path.read_text()
    with pytest.raises(ConfigError, match="no tenant"):
        CliRunner().invoke(app, ["token", "grafana", "--reader", "--tenant", "x"], catch_exceptions=False)


def test_a_senders_file_is_no_readers_file(tmp_path: Path) -> None:
    path = tmp_path / "senders.yaml"
    path.write_text(yaml.safe_dump({"senders": [{"id": "a", "sha256": DIGEST}]}))
    with pytest.raises(ConfigError, match="list under 'readers'"):
        Readers(path, Counters())
    path.write_text(yaml.safe_dump({"readers": [{"id": "a", "sha256": DIGEST, "tenant": "x"}]}))
    with pytest.raises(ConfigError, match="tenant is not known"):
        Readers(path, Counters())
