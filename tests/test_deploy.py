"""What is deployed is what the program knows: its settings load, its ports and paths agree, its deadlines fit."""

from __future__ import annotations

import configparser
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from tollspan.processor.config import Places, ShutdownSettings, load, service_config, settings
from tollspan.processor.forward.settings import Forwarding
from tollspan.processor.sections import variable as variable_of
from tollspan.processor.telemetry import TelemetrySettings

DEPLOY = Path(__file__).parent.parent / "deploy"
BASE = DEPLOY / "kubernetes" / "base"
STOP_S = (
    ShutdownSettings().grace_s + ShutdownSettings().drain_s + Forwarding().drain_s + TelemetrySettings().timeout_s + 2.0
)
"""All that a stop may take."""
VARIABLES = {variable_of(name) for each in settings() for name in (each.name, *each.aliases)} | {"TOLLSPAN_DATA_DIR"}


def documents(path: Path) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.yaml")), ids=lambda path: str(path.relative_to(DEPLOY)))
def test_every_file_is_yaml(path: Path) -> None:
    assert documents(path)


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("tollspan.yaml")), ids=lambda path: str(path.relative_to(DEPLOY)))
def test_settings_that_are_shipped_are_settings(path: Path) -> None:
    config = load(path, environment={})
    service_config(config)
    assert config.get(ShutdownSettings) == ShutdownSettings(), "the deadlines around it are made for these"


def test_every_setting_that_is_named_in_deploy_exists() -> None:
    for path in DEPLOY.rglob("*"):
        if path.is_file() and path.suffix not in (".md", ".pyc"):
            for name in re.findall(r"\bTOLLSPAN_[A-Z_]+\b", path.read_text()):
                assert name in VARIABLES | {"TOLLSPAN_STORE_FILE"}, f"{path.name} names {name}"


# -- Dockerfile --------------------------------------------------------------------------------------------------------


def dockerfile() -> list[str]:
    joined = re.sub(r"\\\n\s*", " ", (DEPLOY / "Dockerfile").read_text())
    return [line for line in joined.splitlines() if line and not line.startswith("#")]


def test_the_image_runs_as_nobody_with_its_state_in_a_volume_and_says_its_health() -> None:
    lines = dockerfile()
    last = lines[max(number for number, line in enumerate(lines) if line.startswith("FROM")) :]
    words = {line.split()[0]: line for line in last}
    assert re.fullmatch(r"USER 10001:10001", words["USER"])
    assert words["VOLUME"] == "VOLUME /var/lib/tollspan"
    assert words["STOPSIGNAL"] == "STOPSIGNAL SIGTERM"
    assert words["ENTRYPOINT"] == 'ENTRYPOINT ["tollspan"]'
    assert not any(line.startswith("ADD") for line in lines)


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_image_s_health_is_what_readyz_says(status: int, code: int) -> None:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    (line,) = [line for line in dockerfile() if line.startswith("HEALTHCHECK")]
    command = json.loads(line.partition(" CMD ")[2])
    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {"TOLLSPAN_HTTP": f"0.0.0.0:{server.server_port}"}
        done = subprocess.run([sys.executable, *command[1:]], env=environment, capture_output=True, timeout=60)
        server.shutdown()
    assert done.returncode == code, done.stderr


def test_the_image_is_made_of_what_the_wheel_needs() -> None:
    copied = {
        word for line in dockerfile() if line.startswith("COPY") and "--from" not in line for word in line.split()[1:-1]
    }
    shipped = {
        line.removeprefix("!")
        for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
        if line[:1] == "!"
    }
    assert copied == shipped
    for name in copied:
        assert (DEPLOY.parent / name).exists()


def test_the_image_s_environment_is_a_configuration() -> None:
    (env,) = [line for line in dockerfile() if line.startswith("ENV")]
    given = dict(pair.split("=", 1) for pair in env.split()[1:])
    ours = {name: value for name, value in given.items() if name.startswith("TOLLSPAN_")}
    config = load(environment=ours)
    assert config.warnings == []
    places = config.get(Places)
    assert not places.insecure_listen, "an open address without TLS is the user's decision"
    assert places.journal == Path("/var/lib/tollspan/journal")


# -- compose -----------------------------------------------------------------------------------------------------------


def test_the_compose_file_waits_for_health_and_opens_nothing_to_others() -> None:
    (compose,) = documents(DEPLOY / "compose" / "compose.yaml")
    ours, store = compose["services"]["tollspan"], compose["services"]["clickhouse"]
    assert ours["depends_on"]["clickhouse"] == {"condition": "service_healthy"}
    assert "healthcheck" in store
    assert all(port.startswith("127.0.0.1:") for port in ours["ports"])
    assert "ports" not in store
    assert compose["networks"]["store"]["internal"] is True
    assert set(store["networks"]) == {"store"}
    assert seconds(ours["stop_grace_period"]) > STOP_S
    volumes = {each.partition(":")[0] for service in (ours, store) for each in service["volumes"]}
    assert volumes == set(compose["volumes"])
    environment = {name: str(value).replace("${CLICKHOUSE_PASSWORD:?set it in .env}", "secret") for name, value in
                   ours["environment"].items()}  # fmt: skip
    environment["TOLLSPAN_KEEP"] = environment["TOLLSPAN_KEEP"].replace("${TOLLSPAN_KEEP:-0.1}", "0.1")
    assert load(environment=environment).get(Places).store == "clickhouse://tollspan:secret@clickhouse:8123/tollspan"
    dockerfile_ = (DEPLOY / "compose" / ours["build"]["context"] / ours["build"]["dockerfile"]).resolve()
    assert dockerfile_ == (DEPLOY / "Dockerfile").resolve()


# -- systemd -----------------------------------------------------------------------------------------------------------


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DEPLOY / "systemd" / "tollspan.service")
    return parser


def test_the_unit_is_told_when_it_is_ready_and_gives_time_to_drain() -> None:
    service = unit()["Service"]
    assert (service["Type"], service["NotifyAccess"]) == ("notify", "main")
    assert float(service["TimeoutStopSec"]) > STOP_S
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert service["ExecStart"].endswith("serve --config /etc/tollspan/tollspan.yaml")
    assert service["ProtectSystem"] == "strict"
    config = load(DEPLOY / "tollspan.yaml", environment={})
    assert str(config.get(Places).journal).startswith(f"/var/lib/{service['StateDirectory']}/")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
def test_systemd_itself_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    text = (DEPLOY / "systemd" / "tollspan.service").read_text()
    path = tmp_path / "tollspan.service"
    # The program is not installed where the unit expects it.
    path.write_text(text.replace("/opt/tollspan/bin/tollspan", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(path)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr.strip()) == (0, "")
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(path)], capture_output=True, timeout=60
    )
    assert done.returncode == 0, "its exposure is 2.0 at the most"


# -- Kubernetes --------------------------------------------------------------------------------------------------------


def objects() -> dict[str, dict[str, Any]]:
    named = yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]
    return {f"{each['kind']}/{each['metadata']['name']}": each for name in named for each in documents(BASE / name)}


def test_everything_that_is_there_is_used() -> None:
    named = set(yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"])
    assert {path.name for path in BASE.glob("*.yaml")} - named == {
        "kustomization.yaml", "tollspan.yaml", "secret.example.yaml",
    }  # fmt: skip


def test_the_pod_has_its_probes_its_journal_and_time_to_drain() -> None:
    spec = objects()["StatefulSet/tollspan"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    places = load(BASE / "tollspan.yaml", environment={}).get(Places)
    assert places.listen.endswith(f":{ports['otlp-grpc']}")
    assert str(places.http).endswith(f":{ports['otlp-http']}")
    paths = {name: container[f"{name}Probe"]["httpGet"] for name in ("liveness", "readiness", "startup")}
    assert {name: probe["path"] for name, probe in paths.items()} == {
        "liveness": "/healthz", "readiness": "/readyz", "startup": "/healthz",
    }  # fmt: skip
    assert {probe["port"] for probe in paths.values()} == {"otlp-http"}
    assert pod["terminationGracePeriodSeconds"] > STOP_S + container["lifecycle"]["preStop"]["sleep"]["seconds"]
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert str(places.journal).startswith(mounts[spec["volumeClaimTemplates"][0]["metadata"]["name"]])
    assert container["args"] == ["serve", "--config", f"{mounts['config']}/tollspan.yaml"]
    assert container["env"][0]["name"] == "TOLLSPAN_STORE"


def test_the_pod_is_restricted() -> None:
    pod = objects()["StatefulSet/tollspan"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    inside = pod["containers"][0]["securityContext"]
    assert inside == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_selectors_find_the_pods_and_nobody_else() -> None:
    found = objects()
    label = {"app.kubernetes.io/name": "tollspan"}
    assert found["StatefulSet/tollspan"]["spec"]["selector"]["matchLabels"] == label
    assert found["Service/tollspan"]["spec"]["selector"] == label
    assert found["Service/tollspan-pods"]["spec"]["selector"] == label
    assert found["Service/tollspan-pods"]["spec"]["clusterIP"] == "None"
    assert found["StatefulSet/tollspan"]["spec"]["serviceName"] == "tollspan-pods"
    assert found["PodDisruptionBudget/tollspan"]["spec"]["selector"]["matchLabels"] == label
    policy = found["NetworkPolicy/tollspan"]["spec"]
    assert policy["podSelector"]["matchLabels"] == label
    assert policy["policyTypes"] == ["Ingress", "Egress"]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not here")
@pytest.mark.parametrize("name", ["base", "several", "tls"])
def test_kustomize_makes_them(name: str) -> None:
    done = subprocess.run(
        ["kubectl", "kustomize", str(DEPLOY / "kubernetes" / name)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    made = {f"{each['kind']}/{each['metadata']['name']}": each for each in yaml.safe_load_all(done.stdout)}
    spec = made["StatefulSet/tollspan"]["spec"]
    pod = spec["template"]
    assert pod["metadata"]["labels"]["app.kubernetes.io/name"] == "tollspan"
    assert spec["replicas"] == (3 if name == "several" else 1)
    # Others' pods are let in by their own label alone.
    (senders,) = made["NetworkPolicy/tollspan"]["spec"]["ingress"][0]["from"]
    assert senders["podSelector"]["matchLabels"] == {"tollspan.dev/sends": "true"}
    (container,) = pod["spec"]["containers"]
    environment = {each["name"]: each.get("value", "chdb://") for each in container["env"]}
    config = load(BASE / "tollspan.yaml", environment=environment)
    assert config.get(Places).insecure_listen is (name != "tls")
    schemes = {
        container[f"{each}Probe"]["httpGet"].get("scheme", "HTTP") for each in ("liveness", "readiness", "startup")
    }
    assert schemes == {"HTTPS" if name == "tls" else "HTTP"}
