"""What can be said of the Dockerfiles without Docker: what they copy exists and suffices to build."""

import fnmatch
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILES = [ROOT / "operator" / "Dockerfile", ROOT / "workers" / "Dockerfile"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def instructions(file: Path) -> list[tuple[str, str]]:
    """Name and text of every instruction."""
    lines = [line for line in file.read_text().splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines()]


def copied(file: Path) -> list[str]:
    """Paths of the repository that go into the build stage."""
    copies = [text.split() for name, text in instructions(file) if name == "COPY" and not text.startswith("--from")]
    return [path for words in copies for path in words[:-1]]


@pytest.fixture(params=DOCKERFILES, ids=lambda file: file.parent.name)
def dockerfile(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


def test_what_is_copied_is_in_the_context(dockerfile: Path) -> None:
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    let_in = [line.removeprefix("!") for line in ignored if line.startswith("!")]
    assert ignored[0] == "*", "nothing is in the context but what is let in"
    for path in copied(dockerfile):
        assert (ROOT / path).exists(), path
        assert any(fnmatch.fnmatch(path, pattern) or path.startswith(f"{pattern}/") for pattern in let_in), path


def test_what_the_wheel_is_built_from_is_copied(dockerfile: Path) -> None:
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = [*wheel["packages"], *wheel["force-include"], *PROJECT["project"]["license-files"]]
    needed += ["pyproject.toml", PROJECT["project"]["readme"], "requirements-build.lock"]
    for path in needed:
        assert any(path == one or path.startswith(f"{one}/") for one in copied(dockerfile)), path


def test_the_last_stage_has_no_privileges_and_no_build_tools(dockerfile: Path) -> None:
    steps = instructions(dockerfile)
    last = steps[max(index for index, (name, _) in enumerate(steps) if name == "FROM") :]
    users = [text for name, text in last if name == "USER"]
    assert users == ["65532:65532"]
    assert not [text for name, text in last if name == "RUN" and "pip" in text]
    assert [name for name, _ in steps].count("FROM") == 2


def test_the_base_can_be_pinned_by_digest(dockerfile: Path) -> None:
    steps = instructions(dockerfile)
    assert steps[0][0] == "ARG"
    assert re.fullmatch(r"PYTHON_IMAGE=\S+:3\.11-\S+", steps[0][1])
    assert {text.split()[0] for name, text in steps if name == "FROM"} == {"${PYTHON_IMAGE}"}


def stages(file: Path) -> list[list[tuple[str, str]]]:
    """The instructions of each stage, after its FROM."""
    found: list[list[tuple[str, str]]] = []
    for name, text in instructions(file):
        if name == "FROM":
            found.append([])
        elif found:
            found[-1].append((name, text))
    return found


def test_whatever_runs_knows_the_commits_time(dockerfile: Path) -> None:
    for stage in stages(dockerfile):
        names = [name for name, _ in stage]
        if "RUN" in names:
            assert ("ARG", "SOURCE_DATE_EPOCH=0") in stage[: names.index("RUN")]


def test_what_is_installed_is_what_is_locked(dockerfile: Path) -> None:
    for name, text in instructions(dockerfile):
        for command in re.findall(r"pip install[^;&]*", text) if name == "RUN" else ():
            assert "--no-deps" in command, "nobody comes along unasked"
            own = command.rstrip().endswith("--no-build-isolation .")
            torch = '--index-url "${TORCH_INDEX}" --constraint requirements.lock torch' in command
            assert "--require-hashes" in command or own or torch, command
        if name == "RUN" and "apt-get install" in text:
            assert "snapshot.debian.org" in text
            for left_over in ("/var/lib/apt/lists", "/var/log/apt", "/var/log/dpkg.log", "/var/cache/ldconfig"):
                assert left_over in text.rpartition("rm -rf")[2], "it says when it was made"
    assert "PIP_NO_COMPILE=1" in dict(stages(dockerfile)[0])["ENV"], "compiled files carry times"


def test_the_lock_names_one_version_of_all_that_images_need() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert [line for line in lines if line and not re.match(r"#|[A-Za-z0-9._-]+(\[[a-z,]+\])?==[^\s;]+", line)] == []
    extras = PROJECT["project"]["optional-dependencies"]
    needed = [*PROJECT["project"]["dependencies"], *extras["operator"], *extras["worker"]]
    assert {named(one) for one in [*needed, *PROJECT["build-system"]["requires"]]} <= set(versions("requirements.lock"))


@pytest.mark.parametrize(
    ("locks", "extras"),
    [
        (["operator/requirements.lock"], ["operator"]),
        (["workers/requirements.lock", "workers/requirements-cuda.lock"], ["worker", "tracing", "stores", "cuda"]),
        (["requirements-build.lock"], None),
    ],
)
def test_images_install_by_hash_what_they_need_in_the_versions_that_were_tested(
    locks: list[str], extras: list[str] | None
) -> None:
    found = {name: version for lock in locks for name, version in versions(lock).items()}
    asked = PROJECT["build-system"]["requires"]
    if extras is not None:
        optional = PROJECT["project"]["optional-dependencies"]
        asked = [*PROJECT["project"]["dependencies"], *(one for extra in extras for one in optional[extra])]
    assert {named(one) for one in asked} <= set(found), "make locks"
    tested = versions("requirements.lock")
    other = {name for name, version in found.items() if tested.get(name, version) != version}
    assert other <= {"python-dateutil"}, "make locks"
    for lock in locks:
        entries = re.split(r"^(?=[A-Za-z0-9])", (ROOT / lock).read_text(), flags=re.MULTILINE)[1:]
        assert [one for one in entries if not re.match(r"\S+==\S+ \\\n    --hash=sha256:[0-9a-f]{64}", one)] == []


def test_without_gpus_nothing_is_installed_that_only_gpus_need() -> None:
    gpu = re.compile(r"torch|triton|cuda-|cupy-|nvidia-")
    assert not [name for name in versions("workers/requirements.lock") if gpu.match(name)]
    assert all(gpu.match(name) for name in versions("workers/requirements-cuda.lock"))


def versions(lock: str) -> dict[str, str]:
    """What a lock names."""
    found = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[a-z,]+\])?==([^\s;]+)", (ROOT / lock).read_text(), flags=re.MULTILINE)
    return {canonical(name): version for name, version in found}


def named(requirement: str) -> str:
    """The name in a requirement."""
    return canonical(re.split(r"[\[>=<;~! ]", requirement)[0])


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not on PATH")
@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "PYTHON_IMAGE=...@sha256:"),
        (["PYTHON_IMAGE=python@sha256:0"], "DEBIAN_SNAPSHOT=20"),
    ],
)
def test_a_release_is_of_what_will_be_the_same_tomorrow(given: list[str], says: str) -> None:
    command = ["make", "--silent", "release-images", *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0
    assert says in done.stderr


def test_versions_are_the_projects(dockerfile: Path) -> None:
    assert ("ARG", f"VERSION={PROJECT['project']['version']}") in instructions(dockerfile)


def test_the_operators_image_has_no_torch_and_no_ray() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    needed = " ".join([*PROJECT["project"]["dependencies"], *extras["operator"]])
    assert "torch" not in needed
    assert "ray" not in needed
    assert not {"torch", "ray"} & set(versions("operator/requirements.lock"))
