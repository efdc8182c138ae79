"""Around the server: flags, health, reflection, metrics, TLS, and clients that are not ours."""

import asyncio
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import gymnasium
import pytest
import tyro

from mrlm_envs.serving import cli
from mrlm_envs.serving import envs_pb2 as pb
from mrlm_envs.serving.connection import Access, Connection, ConnectionLost
from mrlm_envs.serving.settings import Refused, Settings
from tests.support.serving import PROBE, ROOT, Raw, Running, Spawned, code, free_port, running, spawned, wait_for

EXTERNAL = ROOT / "examples" / "external"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(PROBE, "math", metrics_port=0) as server:
        yield server


def parsed(*flags: str) -> Settings:
    return tyro.cli(Settings, args=flags)


def test_every_flag_shows_its_default(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        cli.run(["--help"])
    text = capsys.readouterr().out
    for field in dataclasses.fields(Settings):
        assert f"--{field.name.replace('_', '-')} " in text
    assert text.count("(default: ") + text.count("(required)") == len(dataclasses.fields(Settings))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--environments", "tests/Nothing-v0"], "built in are: "),
        (["--environments", "CartPole-v1"], "not text"),
        (["--environments", "math", "--tls-cert", "x"], "both --tls-cert and --tls-key"),
        (["--environments", "math", "--token-file", "nowhere"], "nowhere"),
        (["--environments", "math", "--workers", "0"], "--workers"),
        (["--environments", "math,", "--host", "203.0.113.7"], "cannot listen on"),
    ],
)
def test_a_wrong_flag_is_one_line_and_status_2(flags: list[str], words: str, capfd: pytest.CaptureFixture[str]):
    assert cli.run([*flags, "--port", "0"]) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("mrlm serve: ")]
    assert len(lines) == 1 and words in lines[0]


def test_an_ipv6_address_works():
    try:
        with running(PROBE, host="::1") as server:
            assert server.server.address == f"[::1]:{server.port}"
            remote = {"address": server.server.address, "env_id": "tests/Probe-v0"}
            assert gymnasium.make("mrlm_envs:mrlm/Remote-v0", **remote).reset(seed=1)
    except Refused:
        pytest.skip("no IPv6 here")


def test_a_taken_port_is_said(server: Running, capfd: pytest.CaptureFixture[str]):
    assert cli.run(["--environments", "math", "--port", str(server.port)]) == 2
    assert "is the port taken?" in capfd.readouterr().err


def test_serving_does_not_import_torch():
    program = "import sys, mrlm_envs.serving.cli, mrlm_envs.serving.remote; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, cwd=ROOT).returncode == 0


def test_health_and_reflection_answer(server: Running):
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    channel = grpc.insecure_channel(server.address)
    serving = health_pb2.HealthCheckResponse.SERVING
    for name in ("", "mrlm.env.v1.Environments"):
        assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name)).status == serving
    database = ProtoReflectionDescriptorDatabase(channel)
    assert "mrlm.env.v1.Environments" in database.get_services()
    assert database.FindFileContainingSymbol("mrlm.env.v1.StepItem").package == "mrlm.env.v1"
    channel.close()


def test_health_and_reflection_need_no_token():
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with running(tokens="me t") as server:
        channel = grpc.insecure_channel(server.address)
        assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()).status == 1
        channel.close()


def test_health_turns_when_every_thread_is_lost_and_back():
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with running(threads=1, step_timeout=0.3) as server:
        raw, session = Raw(server.address), os.urandom(16)
        raw.reset(session)
        stub = health_pb2_grpc.HealthStub(raw.channel)
        assert code(raw.step(session, 1, "sleep 2")) == "STEP_TIMEOUT"
        wait_for(lambda: stub.Check(health_pb2.HealthCheckRequest()).status == 2)
        wait_for(lambda: stub.Check(health_pb2.HealthCheckRequest()).status == 1)
        raw.close()


def test_metrics_count_sessions_steps_latency_errors_and_queue():
    port = free_port()
    with running(PROBE, metrics_port=port) as server:
        raw, session = Raw(server.address), os.urandom(16)
        raw.reset(session)
        for seq in (1, 2, 3):
            raw.step(session, seq)
        raw.step(session, 9)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        raw.close()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values["mrlm_sessions"]) == 1
    assert float(values["mrlm_queue_depth"]) == 0
    assert float(values['mrlm_errors_total{code="BAD_SEQ"}']) == 1
    assert float(values['mrlm_step_seconds_count{env="tests/Probe-v0"}']) == 3
    assert float(values['mrlm_step_seconds_bucket{env="tests/Probe-v0",le="+Inf"}']) == 3
    assert 0 < float(values['mrlm_step_seconds_sum{env="tests/Probe-v0"}']) < 5


def test_metrics_count_resets_refusals_waits_tenants_and_memory():
    port = free_port()
    with running(PROBE, metrics_port=port, tokens="a one\nb two") as server:
        for token in ("one", "two"):
            raw = Raw(server.address, token)
            raw.reset(os.urandom(16))
            raw.close()
        with pytest.raises(grpc.RpcError):
            Raw(server.address, "three").reset(os.urandom(16))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            text = answer.read().decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values["mrlm_tenants"]) == 2 and float(values['mrlm_resets_total{env="tests/Probe-v0"}']) == 2
    assert float(values['mrlm_refused_calls_total{status="UNAUTHENTICATED"}']) == 1
    assert float(values["mrlm_queue_seconds_count"]) == 2 and float(values["process_resident_memory_bytes"]) > 1e6


def test_the_dashboard_shows_metrics_that_exist():
    import re

    dashboard = json.loads((ROOT / "deploy" / "grafana.json").read_text())
    shown = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"\b(?:mrlm|process)_\w+", target["expr"])
    }
    port = free_port()
    with running(PROBE, metrics_port=port) as server:
        raw, session = Raw(server.address), os.urandom(16)
        raw.reset(session), raw.step(session, 1), raw.step(session, 9)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        raw.close()
    told = set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))
    told |= {f"{name}_{part}" for name in told for part in ("bucket", "count", "sum", "total")}
    assert len(shown) >= 8 and shown <= told, shown - told


def test_every_log_line_is_one_json_object_with_session_and_task():
    with spawned(1) as [(server, address)]:
        raw, session = Raw(address), os.urandom(16)
        task = json.loads(raw.reset(session).info)["task_id"]
        assert code(raw.step(session, 1, "raise ouch\nand more")) == "ENV_FAILED"
        stub = raw.channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
        with pytest.raises(grpc.RpcError):
            list(stub(iter([b"\xff" * 30]), timeout=30))
        assert not code(raw.reset(session, episode=2)), "garbage for the reflection service costs nothing"
        raw.close()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
        logs = server.logs()
    (failure,) = [line for line in logs if "ouch" in line["message"]]
    named = {"level": "warning", "tenant": "", "session": session.hex(), "env": "tests/Probe-v0", "task": task}
    assert named.items() <= failure.items() and failure["time"].endswith("+00:00") and "respond" in failure["traceback"]
    assert [line for line in logs if "traceback" in line] == [failure]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A certificate authority, and a server's and a client's certificate signed by it."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*args: str) -> None:
        subprocess.run(["openssl", *args], check=True, cwd=folder, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test", "-days", "1")
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    for name in ("server", "client"):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "1", "-extfile", "names")
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signing)
    return {path.name: str(path) for path in folder.iterdir()}


def test_mutual_tls_lets_in_only_those_with_a_certificate(certificates: dict[str, str]):
    files = {name: Path(path) for name, path in certificates.items()}
    tls = {"tls_key": files["server.key"], "tls_cert": files["server.pem"], "tls_client_ca": files["ca.pem"]}
    with running(PROBE, **tls) as server:
        own = {"tls_cert": certificates["client.pem"], "tls_key": certificates["client.key"]}

        def make(address: str, **kwargs: object) -> gymnasium.Env[str, str]:
            remote = {"address": address, "env_id": "tests/Probe-v0", "step_timeout": 1.5, **kwargs}
            return gymnasium.make("mrlm_envs:mrlm/Remote-v0", **remote)

        ca = {"tls_ca": certificates["ca.pem"]}
        for address in (server.address, f"dns:///localhost:{server.port}"):
            assert make(address, **ca, **own, step_timeout=20).reset(seed=1)
        for lacking, cause in (
            (ca, "no server answers"),  # TLS 1.3 tells a client without a certificate only when it hangs up
            ({"tls": True, **own}, "its certificate is not trusted"),
            ({}, "if it speaks TLS"),
        ):
            with pytest.raises(Exception, match=cause):
                make(server.address, **lacking)


def test_the_flags_for_tls_and_tokens_work_together(certificates: dict[str, str], tmp_path: Path):
    tokens = tmp_path / "tokens"
    tokens.write_text("me secret\n")
    flags = ["--tls-cert", certificates["server.pem"], "--tls-key", certificates["server.key"]]
    with spawned(1, *flags, "--token-file", str(tokens), environments=PROBE) as [(server, address)]:
        remote = {"address": address, "env_id": "tests/Probe-v0", "tls_ca": certificates["ca.pem"], "token": "secret"}
        assert gymnasium.make("mrlm_envs:mrlm/Remote-v0", **remote).reset(seed=1)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 0


def test_a_certificate_that_is_missing_for_a_moment_does_not_end_the_recovery_of_a_server(
    certificates: dict[str, str], tmp_path: Path
):
    ca, port = tmp_path / "ca.pem", free_port()
    item = pb.ResetItem(session=b"s" * 16, episode=1, env_id="tests/Probe-v0", seed=1)

    async def lose_and_find() -> None:
        connection = Connection(f"localhost:{port}", None, Access(tls_ca=str(ca)))
        ca.write_text(Path(certificates["ca.pem"]).read_text())
        with pytest.raises(ConnectionLost):
            await connection.call("Reset", [item])
        ca.unlink()
        connection.close()  # as before a fork
        while "ca.pem" not in connection.trouble:
            await asyncio.sleep(0.01)
        ca.write_text(Path(certificates["ca.pem"]).read_text())
        tls = {"tls_key": Path(certificates["server.key"]), "tls_cert": Path(certificates["server.pem"])}
        with running(PROBE, port=port, **tls):
            while connection.is_blocked:
                await asyncio.sleep(0.01)
            connection.close_for_good()

    asyncio.run(asyncio.wait_for(lose_and_find(), 60))


def test_a_plain_grpcio_client_plays_an_episode(server: Running):
    command = [sys.executable, str(EXTERNAL / "python_client.py"), server.address, "math"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["stop_reason"] == "max_turns"
    source = (EXTERNAL / "python_client.py").read_text()
    assert "import mrlm" not in source and "from mrlm" not in source


@pytest.fixture(scope="module")
def node() -> str:
    """Node with the two packages of the example."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node is not installed")
    if not (EXTERNAL / "node_modules" / "@grpc" / "grpc-js").exists():
        install = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts"]
        done = subprocess.run(install, cwd=EXTERNAL, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            pytest.skip(f"npm install failed: {done.stderr[-200:]}")
    return "node"


def test_a_node_client_plays_an_episode(server: Running, node: str):
    def play(*args: str) -> str:
        command = [node, str(EXTERNAL / "node_client.js"), server.address, *args]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout

    assert json.loads(play("math").splitlines()[-1])["stop_reason"] == "max_turns"
    raw, session = Raw(server.address), os.urandom(16)
    opening = raw.reset(session, seed=1)
    last = raw.step(session, 1, "done \u4e2d")
    lines = play("tests/Probe-v0", "done \u4e2d").splitlines()
    assert lines[0] == f"> {opening.observation}", "the same seed, the same episode"
    assert json.loads(lines[-1])["turn"] == json.loads(last.info)["turn"] == 1
    raw.close()


@pytest.mark.slow
def test_a_jax_trainer_learns_on_a_served_environment(server: Running):
    pytest.importorskip("jax")
    pytest.importorskip("optax")
    command = [sys.executable, str(EXTERNAL.parent / "jax_reinforce.py"), "--address", server.address, "--steps", "251"]
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True, env=env)
    right = [float(line.split()[-1]) for line in done.stdout.splitlines()]
    assert right[0] < 0.15 and right[-1] > 0.5, right


@pytest.mark.slow
@pytest.mark.parametrize("version", ["5.29.6", "6.33.5", "7.*"])
def test_generated_code_loads_on_protobuf(version: str, tmp_path: Path):
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    python = venv / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", f"protobuf=={version}"]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"protobuf {version} cannot be installed: {done.stderr[-200:]}")
    program = (
        "import google.protobuf, envs_pb2 as pb; print(google.protobuf.__version__);"
        "item = pb.StepItem(session=b'x' * 16, seq=3, action=b'a');"
        "assert pb.StepItem.FromString(item.SerializeToString()) == item"
    )
    folder = ROOT / "mrlm_envs" / "serving"
    done = subprocess.run(
        [str(python), "-W", "error", "-c", program], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(version.rstrip("*"))


def test_the_generated_code_is_that_of_the_protocol_file():
    """`make proto` has been run: names and numbers in the text are those of the generated descriptor."""
    import re

    text = (ROOT / "mrlm_envs" / "serving" / "envs.proto").read_text()
    messages = re.findall(r"^message (\w+) \{(.*?)^\}", text, re.DOTALL | re.MULTILINE)
    assert {name for name, _ in messages} == set(pb.DESCRIPTOR.message_types_by_name)
    for name, body in messages:
        written = {field: int(number) for field, number in re.findall(r"(\w+) = (\d+);", body)}
        made = {field.name: field.number for field in pb.DESCRIPTOR.message_types_by_name[name].fields}
        assert written == made
    enum = re.search(r"^enum Code \{(.*?)^\}", text, re.DOTALL | re.MULTILINE)
    assert enum is not None
    assert {key: int(value) for key, value in re.findall(r"(\w+) = (\d+);", enum.group(1))} == dict(pb.Code.items())


def test_the_deployment_files_use_flags_that_exist_and_let_environments_reach_nothing():
    import yaml

    kinds = {part["kind"]: part for part in yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text())}
    container = kinds["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    lines = (ROOT / "deploy" / "Dockerfile").read_text().splitlines()
    entry = json.loads(next(line for line in lines if line.startswith("ENTRYPOINT")).removeprefix("ENTRYPOINT "))
    assert entry[:3] == ["python", "-m", "mrlm_envs.serving"]
    args = parsed(*entry[3:], *container["args"])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert (args.port, args.metrics_port) == (ports["grpc"], ports["metrics"])
    args.check()
    assert args.token_file and args.tls_cert and args.tls_key, "tokens travel over TLS"
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {str(path.parent) for path in (args.token_file, args.tls_cert, args.tls_key)} <= mounts
    probed = [container[probe] for probe in ("startupProbe", "readinessProbe", "livenessProbe")]
    assert {(probe.get("tcpSocket") or probe["httpGet"])["port"] for probe in probed} == set(ports.values())
    assert "@sha256:" in container["image"]
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {f"!{name}" for name in copied} <= set(ignored) and ignored[0] == "*"
    assert kinds["Service"]["spec"]["clusterIP"] == "None"
    policy = kinds["NetworkPolicy"]["spec"]
    assert policy["egress"] == [] and "Egress" in policy["policyTypes"]
    assert kinds["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > args.grace


def test_spawned_servers_print_one_line_an_address():
    server = Spawned(environments="math")
    try:
        assert server.process.stdout is not None
        assert server.process.stdout.readline().startswith("mrlm serve: 127.0.0.1:")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 0 and server.process.stdout.read() == ""
    finally:
        server.end()
