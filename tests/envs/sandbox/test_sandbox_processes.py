"""The sandbox among processes: what dies with whom, what is left behind, what is missing on other systems."""

import concurrent.futures
import errno
import os
import platform
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from mrlm_envs.sandbox import Limits, Sandbox, SandboxFault
from mrlm_envs.sandbox.launch import LaunchFailed, TemplateLauncher, Worker, _Control
from tests.envs.sandbox.hostile.footprint import descendants, footprint
from tests.support.fresh import in_fresh_process
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(workers=2) as pool:
        yield pool


def test_nothing_is_left_after_close():
    before = footprint()
    with Sandbox() as pool:
        session = pool.session()
        session.run("x = 1")
        pool.run("print(1)")
        root = Path(pool._root)
        assert root.exists()
    assert footprint(like=before) == before and not root.exists()


def test_an_early_error_in_our_own_code_leaves_nothing_either(sandbox):
    sandbox.run("pass")
    before = footprint()
    with pytest.raises(ZeroDivisionError), sandbox.open() as program:
        program.load("x = 1")
        raise ZeroDivisionError
    assert footprint(like=before) == before


def kill_template(launcher: TemplateLauncher) -> int:
    """Kills the template and waits until all that was forked from it is dead; gives its process id."""
    pid = launcher.pid
    assert pid > 0
    family = {pid, *descendants(pid)}
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while any(_lives(member) for member in family) and time.monotonic() < deadline:
        time.sleep(0.005)
    return pid


def test_a_killed_template_is_replaced_and_the_run_is_tried_again(sandbox):
    sandbox.run("pass")
    launcher = sandbox._launcher
    assert isinstance(launcher, TemplateLauncher)
    for _ in range(3):
        old = kill_template(launcher)
        assert sandbox.run("def f(): return 5", [("f", [])]).values == [5]
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        code = "import time\ndef f():\n    time.sleep(1)\n    return 5"
        running = threads.submit(sandbox.run, code, [("f", [])], limits=Limits(timeout_s=30.0))
        time.sleep(0.4)
        kill_template(launcher)
        assert running.result().values == [5]
    assert launcher.pid not in (0, old)


def test_a_program_during_which_the_sandbox_dies_twice_has_failed():
    with Sandbox(workers=1) as pool:
        pool.run("pass")
        launcher = pool._launcher
        assert isinstance(launcher, TemplateLauncher)

        def kill_twice():
            seen = 0
            for _ in range(2):
                while launcher.pid in (0, seen) or len(descendants(launcher.pid)) < 2:
                    time.sleep(0.01)
                time.sleep(0.2)
                seen = launcher.pid
                os.kill(seen, signal.SIGKILL)

        killer = threading.Thread(target=kill_twice, daemon=True)
        killer.start()
        result = pool.run("import time\ntime.sleep(60)", limits=Limits(timeout_s=60))
        killer.join(60)
        assert result.failure is not None and result.failure.kind == "crash"
        assert pool.run("def f(): return 1", [("f", [])]).values == [1]


def test_only_a_sandbox_in_which_trusted_code_fails_too_is_a_fault(monkeypatch):
    with Sandbox(workers=1) as pool:
        pool.run("pass")
        launcher = pool._launcher
        assert isinstance(launcher, TemplateLauncher)
        monkeypatch.setattr(sys, "executable", "/nonexistent/python")
        kill_template(launcher)
        with pytest.raises(SandboxFault, match="nonexistent"):
            pool.run("pass")


def test_a_forked_process_starts_a_pool_of_its_own():
    in_fresh_process("""
        import multiprocessing
        from mrlm_envs.sandbox import Sandbox

        with Sandbox(workers=2) as sandbox:
            sandbox.run("pass")
            context = multiprocessing.get_context("fork")
            queue = context.Queue()
            call = lambda: queue.put(sandbox.run("def f(): return 6", [("f", [])]).values)
            child = context.Process(target=call)
            child.start()
            assert queue.get(timeout=120) == [6]
            child.join(120)
            assert child.exitcode == 0
            assert sandbox.run("def f(): return 7", [("f", [])]).values == [7]
    """)


def test_a_fork_that_throws_its_copy_away_leaves_our_processes_alone():
    in_fresh_process("""
        import contextlib, gc, os
        from mrlm_envs.sandbox import Sandbox

        with Sandbox(workers=2) as sandbox, sandbox.session() as session:
            session.run("x = 1\\nopen('kept', 'w').close()")
            if (pid := os.fork()) == 0:
                with contextlib.suppress(BaseException):
                    session.close()
                    sandbox.close()
                    del session
                    gc.collect()
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
            assert session.run("import os\\n(x, os.listdir('.'))").values == [(1, ["kept"])]
            assert not session.restarted
    """)


def test_a_session_whose_sandbox_was_killed_starts_afresh_and_says_so():
    with Sandbox("landlock", workers=2) as pool, pool.session() as session:
        assert session.run("x = 1\nx").values == [1]
        launcher = pool._launcher
        assert isinstance(launcher, TemplateLauncher)
        before = footprint()
        for _ in range(3):
            kill_template(launcher)
            assert session.run("'x' in globals()").values == [False] and session.restarted
            assert session.run("y = 2\ny").values == [2] and not session.restarted
        assert footprint(like=before) == before


def test_everything_dies_with_the_process_that_owns_it():
    code = """
        import threading, time
        from mrlm_envs.sandbox import Answer, Failure, Limits, Sandbox
        pool = Sandbox(workers=1)
        pool.run("pass")
        loop = "import signal\\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\\nwhile True: pass"
        threading.Thread(target=pool.run, args=(loop,), kwargs={"limits": Limits(timeout_s=60)}, daemon=True).start()
        time.sleep(0.5)
        print(pool._root, flush=True)
        time.sleep(60)
    """
    owner = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ
    )
    assert owner.stdout is not None
    root = Path(owner.stdout.readline().strip())
    family = descendants(owner.pid)
    assert len(family) >= 3 and root.exists()
    owner.kill()
    owner.wait()
    owner.stdout.close()
    deadline = time.monotonic() + 60
    while (any(_lives(pid) for pid in family) or root.exists()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [pid for pid in family if _lives(pid)] == [] and not root.exists()


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _refusal(number: int) -> str:
    """What the sandbox says where Landlock's first system call fails, and how many descriptors three refusals leak."""
    code = f"""
        import os, struct, sys
        from mrlm_envs.sandbox import Sandbox, SandboxUnavailable, isolation
        isolation.prctl("no new privileges", isolation.PR_SET_NO_NEW_PRIVS, 1)
        program = [(0x20, 0, 0, 0), (0x15, 0, 1, 444), (0x06, 0, 0, 0x00050000 | {number}), (0x06, 0, 0, 0x7FFF0000)]
        isolation.seccomp_restriction(b"".join(struct.pack("=HBBI", *op) for op in program))()
        pool, before = Sandbox(), len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            try:
                pool.start()
            except SandboxUnavailable as error:
                refusal = error
        print(refusal)
        print(len(os.listdir("/proc/self/fd")) - before, "descriptors")
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PATH": "/nonexistent"}, check=True,
    ).stdout  # fmt: skip


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (errno.EOPNOTSUPP, "Landlock is off in this kernel: add it to the boot parameter lsm="),
        (errno.ENOSYS, "no Landlock in this kernel (before 5.13, or built without it), or a container's profile"),
        (errno.EPERM, "forbidden here by a container's seccomp profile: allow landlock_create_ruleset"),
    ],
)
def test_without_any_isolation_it_refuses_says_why_and_what_to_do_and_leaks_nothing(number, why):
    refusal, leaked, _ = _refusal(number).split("\n")
    assert why in refusal and "bwrap is not installed" in refusal and 'sandbox="unsafe"' in refusal
    assert leaked == "0 descriptors"


def test_no_isolation_warns_once(monkeypatch):
    monkeypatch.setattr("mrlm_envs.sandbox.sandbox._shared", {})
    with pytest.warns(UserWarning, match="without isolation") as warned:
        for _ in range(3):
            Sandbox.shared("unsafe")
    assert len(warned) == 1


def test_a_workspace_is_made_ready_once_though_the_thread_for_it_cannot_start(monkeypatch):
    """A `submit` whose thread does not start has queued the job: both the queue and the caller could do it."""
    with Sandbox(workers=1) as pool:
        pool.start()
        start = threading.Thread.start
        monkeypatch.setattr(threading.Thread, "start", _raises_once(start))
        for _ in range(4):
            pool.run("pass")
        pool._janitor.submit(int).result()  # all before it is done
        workspaces = pool._workspaces
        assert len({id(workspace) for workspace in workspaces}) == len(workspaces)
        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            codes = [f"import time\nprint({i})\ntime.sleep(0.05)\nprint({i})" for i in range(12)]
            assert [r.stdout for r in threads.map(pool.run, codes)] == [f"{i}\n{i}\n" for i in range(12)]


def _raises_once(start):
    failed = []

    def maybe(thread):
        if "janitor" in thread.name and not failed:
            failed.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    return maybe


def test_a_failed_fork_fails_one_run_at_most_and_at_once(sandbox):
    sandbox.run("pass")
    failing = Worker.__new__(Worker)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    failing._control, failing._next = _Control(), None
    failing._control.socket.close()
    failing._control.socket = ours
    failing.prepare()
    theirs.recv(64)
    theirs.send(b"Eno more processes")  # as to the child forked ahead
    theirs.send(b"Eno more processes")  # as to the one that replaces it
    with pytest.raises(LaunchFailed, match="no more processes"):
        failing.start()
    assert failing._next is None
    failing.close()
    theirs.close()


CAPSET = {"x86_64": 126, "aarch64": 91}
HOG = """
import _thread, time
_thread.stack_size(32768)
try:
    while True: _thread.start_new_thread(time.sleep, (100,))
except RuntimeError:
    time.sleep(100)
"""


def test_a_program_that_takes_every_process_id_is_ended_and_its_neighbours_notice_nothing():
    """Under a limit on processes, as containers have one: an ordinary user's `RLIMIT_NPROC`."""
    code = f"""
        import concurrent.futures, ctypes, os, resource, struct
        if os.getuid() == 0:  # root is exempt; a user who may read everything is not
            libc = ctypes.CDLL(None)
            libc.prctl(8, 1, 0, 0, 0)  # keep capabilities
            os.setgroups([]), os.setgid(54321), os.setuid(54321)
            header, words = struct.pack("=Ii", 0x20080522, 0), struct.pack("=6I", 4, 4, 4, 0, 0, 0)  # DAC_READ_SEARCH
            assert libc.syscall({CAPSET[platform.machine()]}, header, words) == 0
            assert libc.prctl(47, 2, 2, 0, 0) == 0  # for programs it starts, too
        from mrlm_envs.sandbox import Limits, Sandbox
        with Sandbox(workers=4) as pool, concurrent.futures.ThreadPoolExecutor(6) as threads:
            limits = Limits(timeout_s=60.0)
            resource.setrlimit(resource.RLIMIT_NPROC, (150, 150))
            list(threads.map(lambda i: pool.run("import time; time.sleep(0.05)"), range(24)))  # all threads run
            hog = threads.submit(pool.run, {HOG!r}, limits=limits)
            runs = [threads.submit(pool.run, "def f(x): return x", [("f", [i])], limits=limits) for i in range(40)]
            print(hog.result().failure.kind, [run.result().values[0] for run in runs] == [*range(40)])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "threads True\n", done.stdout + done.stderr[-2000:]


def test_importing_it_works_without_the_modules_that_windows_lacks_and_using_it_refuses():
    code = """
        import gymnasium, numpy, os, subprocess, sys
        for name in ("fcntl", "resource", "pwd", "grp", "termios"):
            sys.modules[name] = None
        sys.platform = "win32"
        for name in ("fork", "register_at_fork", "memfd_create", "pidfd_open", "sched_getaffinity"):
            if hasattr(os, name):
                delattr(os, name)
        import mrlm_envs.sandbox, mrlm_envs.code.env
        try:
            mrlm_envs.code.env.CodeEnv()
        except mrlm_envs.sandbox.SandboxUnavailable as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1 and "no sandbox on win32" in done.stdout


def test_it_works_from_a_grpc_executor_and_after_torch():
    code = """
        import concurrent.futures, grpc, torch
        from mrlm_envs.sandbox import Sandbox
        def handle(request, context):
            return repr(Sandbox.shared().run("def f(): return 9", [("f", [])]).values).encode()
        server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
        method = grpc.unary_unary_rpc_method_handler(handle)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("S", {"F": method}),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/S/F")
            print({f.result(timeout=300) for f in [call.future(b"") for _ in range(8)]})
        server.stop(0).wait()
    """
    pytest.importorskip("grpc")
    pytest.importorskip("torch")
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "{b'[9]'}\n", done.stderr
