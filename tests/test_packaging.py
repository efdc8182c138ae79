"""What is built from the checkout installs elsewhere, and works there."""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import mrlm_envs
from tests.support.paths import ROOT

PACKAGES = ("mrlm_envs", "mrlm_train")
PLAY_ALL = """
import gymnasium, mrlm_envs
assert "site-packages" in mrlm_envs.__file__, mrlm_envs.__file__
for env_id, *_ in mrlm_envs.ENVIRONMENTS.values():
    if env_id == "mrlm/LLM-v0":
        continue  # it needs an endpoint
    env = gymnasium.make(env_id)
    env.reset(seed=0)
    env.step(env.unwrapped.expert())
    env.close()
print("all played")
"""


def python(*arguments: object, cwd: Path, program: Path | str = sys.executable, said: str | None = None) -> str:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    options = {"cwd": cwd, "env": clean, "input": said, "capture_output": True, "text": True, "timeout": 280}
    done = subprocess.run([program, *map(str, arguments)], check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from it, as `python -m build` makes them."""
    folder = tmp_path_factory.mktemp("built")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.rstrip("\0").split("\0"):
        if name.startswith(PACKAGES) or "/" not in name:
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    python("-c", build, folder, cwd=folder / "source")
    [sdist] = folder.glob("*.tar.gz")
    python("-m", "pip", "wheel", sdist, "--no-deps", "--no-build-isolation", "-w", folder, cwd=folder)
    [wheel] = folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh virtual environment: the wheel in it, and this one's libraries beside it."""
    folder = tmp_path_factory.mktemp("fresh")
    python("-m", "venv", "--without-pip", "venv", cwd=folder)
    programs = folder / "venv" / "bin"
    python("-m", "pip", f"--python={programs / 'python'}", "install", "--no-deps", built[1], cwd=folder)
    [libraries] = (folder / "venv" / "lib").glob("*/site-packages")
    (libraries / "others.pth").write_text(sysconfig.get_paths()["purelib"])
    return programs


def test_every_extra_that_is_named_anywhere_exists_and_so_does_one_for_every_environment() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()
    files = [*ROOT.glob("*.md"), *ROOT.glob("*.toml"), *ROOT.glob("docs/*.md")]
    files += [path for folder in (*PACKAGES, "examples") for path in (ROOT / folder).rglob("*.py")]
    texts = [path.read_text("utf-8") for path in files]
    named = {name for text in texts for names in re.findall(r"mrlm\[([\w,-]+)\]", text) for name in names.split(",")}
    assert {"train", "serve", "sql"} <= named <= extras
    assert mrlm_envs.ENVIRONMENTS.keys() <= extras


@pytest.mark.slow
def test_every_tracked_file_of_the_packages_is_in_the_sdist_and_the_wheel(built: tuple[Path, Path]) -> None:
    listed = subprocess.run(["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    sdist, wheel = built
    with tarfile.open(sdist) as archive:
        assert set(listed.split()) <= {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        assert set(listed.split()) <= set(archive.namelist())


@pytest.mark.slow
def test_the_installed_command_works_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    mrlm = installed / "mrlm"
    assert "play" in python("--help", cwd=tmp_path, program=mrlm)
    assert "mrlm/Math-v0" in python("info", cwd=tmp_path, program=mrlm)
    assert "[a right answer]" in python("play", "math", cwd=tmp_path, program=mrlm, said="1\n" * 9)
    assert "all played" in python("-c", PLAY_ALL, cwd=tmp_path, program=installed / "python")
    python("export", "openenv", "math", "space", cwd=tmp_path, program=mrlm)
    assert (tmp_path / "space" / "Dockerfile").is_file()


@pytest.mark.slow
def test_the_demo_runs_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    for name in ("demo_complete.py", "synthetic_data_generator.py"):
        (tmp_path / name).write_text((ROOT / "examples" / "demo_e2e" / name).read_text())
    assert "[7/7]" in python("demo_complete.py", "--quick", cwd=tmp_path, program=installed / "python")
