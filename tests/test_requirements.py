"""The lock files: every line exact and hashed, as DESIGN.md's table says, and free of addresses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements"
NAMES = sorted(path.stem for path in REQUIREMENTS.glob("*.in"))
PIN = re.compile(r"^([a-z0-9.-]+)==([^\s;\\]+)((?: *\\\n +--hash=sha256:[0-9a-f]{64})+)$", re.M)

# DESIGN.md, "The stack, and pins that are known to work together"; pyarrow is newer since, because
# of CVE-2023-47248.
DESIGN = {
    "tensorflow-cpu": "2.12.1",
    "keras": "2.12.0",
    "merlin-core": "23.8.0",
    "nvtabular": "23.8.0",
    "merlin-dataloader": "23.8.0",
    "merlin-models": "23.12.0",
    "dask": "2023.3.2",
    "distributed": "2023.3.2.1",
    "dask-cuda": "23.6.0",
    "pandas": "1.5.3",
    "pyarrow": "14.0.2",
    "numba": "0.58.1",
    "scipy": "1.11.4",
    "protobuf": "4.25.9",
}


def lock(name: str) -> dict[str, str]:
    return {name: version for name, version, _ in PIN.findall(text(name))}


def text(name: str) -> str:
    return (REQUIREMENTS / f"{name}.txt").read_text()


def release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


@pytest.mark.parametrize("name", NAMES)
def test_every_pin_is_exact_and_hashed(name: str) -> None:
    lines = [line for line in text(name).splitlines() if line and line[0] not in " #"]
    assert lines
    assert [line.split("==")[0] for line in lines] == list(lock(name))


@pytest.mark.parametrize("name", NAMES)
def test_no_lock_names_an_address(name: str) -> None:
    assert not re.findall(r"https?:|--(?:extra-)?index|--find-links| @ |file:", text(name))


@pytest.mark.parametrize("name", NAMES)
def test_every_lock_holds_what_its_source_asks_for(name: str) -> None:
    asked = re.findall(r"^([A-Za-z][\w.-]*)", (REQUIREMENTS / f"{name}.in").read_text(), re.M)
    kept = set(lock(name)) | set(re.findall(r"^# ([a-z-]+)$", text(name), re.M))
    assert {package.lower() for package in asked} <= kept


def test_pins_are_those_of_the_design() -> None:
    pins = lock("runtime")
    assert {name: pins[name] for name in DESIGN} == DESIGN
    assert lock("horovod") == {"horovod": "0.28.1"}
    assert release(pins["tensorflow-metadata"]) < (1, 16)
    assert release(pins["setuptools"]) < (82,)  # it has pkg_resources, which TensorBoard needs
    assert release(pins["numpy"]) < (1, 24, 4)
    assert release(pins["typing-extensions"]) < (4, 6)


def test_dev_is_runtime_and_more() -> None:
    assert lock("runtime").items() < lock("dev").items()


def test_horovod_finds_its_dependencies_in_the_runtime() -> None:
    # It is installed with --no-deps. cffi is needed with PyTorch only.
    assert {"cloudpickle", "psutil", "pyyaml", "packaging"} <= set(lock("runtime"))


def test_cmake_is_one_that_gloo_accepts() -> None:
    # horovod 0.28.1's third_party/gloo asks for CMake 2.8.12; CMake 4 refuses all below 3.5.
    assert (3, 13) <= release(lock("tools")["cmake"]) < (4,)


def test_the_image_gets_the_hotfix_of_its_pyarrow() -> None:
    # The Merlin image's pyarrow is older than 14.0.1: see arrow_files.py.
    assert "pyarrow-hotfix" in lock("gpu")
    assert "pyarrow" not in lock("gpu")


ANSWERS = {"upgraded", "mitigated", "does not apply"}


def advisories() -> list[dict[str, Any]]:
    import tomllib  # from Python 3.11 on, which the locks are for

    content = tomllib.loads((REQUIREMENTS / "advisories.toml").read_text())
    assert list(content) == ["advisory"]
    return content["advisory"]


def locked() -> dict[str, set[str]]:
    """Versions of each package in all locks."""
    versions: dict[str, set[str]] = {}
    for name in NAMES:
        for package, version in lock(name).items():
            versions.setdefault(package, set()).add(version)
    return versions


def test_advisories_are_well_formed() -> None:
    found = advisories()
    for entry in found:
        assert set(entry) == {"package", "id", "affected", "answer", "why"}, entry
        assert re.fullmatch(r"CVE-\d{4}-\d{4,}|GHSA(-[0-9a-z]{4}){3}", entry["id"]), entry
        assert SpecifierSet(entry["affected"]), entry
        assert entry["answer"] in ANSWERS, entry
        assert entry["why"].strip(), entry
    assert len({(entry["package"], entry["id"]) for entry in found}) == len(found)


def wrong_answers(entries: list[dict[str, Any]], versions: dict[str, set[str]]) -> list[str]:
    wrong = []
    for entry in entries:
        package, affected = entry["package"], SpecifierSet(entry["affected"], prereleases=True)
        hit = sorted(version for version in versions.get(package, ()) if version in affected)
        if package not in versions:
            wrong.append(f"{entry['id']}: no lock holds {package} any more")
        elif hit and entry["answer"] == "upgraded":
            wrong.append(f"{entry['id']}: {package} {', '.join(hit)} is affected, not upgraded")
        elif not hit and entry["answer"] != "upgraded":
            wrong.append(f"{entry['id']}: no locked {package} is affected; it is upgraded")
    return wrong


def test_every_advisory_has_an_answer_that_holds() -> None:
    assert not wrong_answers(advisories(), locked())


@pytest.mark.parametrize(
    ("answer", "version", "complaint"),
    [
        ("upgraded", "1.9", "a 1.9 is affected"),
        ("mitigated", "2.0", "no locked a is affected"),
        ("mitigated", None, "no lock holds a"),
        ("upgraded", "2.0", None),
        ("does not apply", "1.9", None),
    ],
)
def test_an_answer_that_does_not_hold_is_found(
    answer: str, version: str | None, complaint: str | None
) -> None:
    entry = {"package": "a", "id": "CVE-2000-0001", "affected": "<2", "answer": answer}
    wrong = wrong_answers([entry], {"a": {version}} if version else {})
    assert len(wrong) == (complaint is not None)
    assert complaint is None or complaint in wrong[0]


def test_extras_are_tested() -> None:
    import tomllib

    pyproject = tomllib.loads((REQUIREMENTS.parent / "pyproject.toml").read_text())
    extras = pyproject["project"]["optional-dependencies"]
    assert {"mlflow", "redis", "triton", "tune"} <= extras.keys()
    named = {re.split(r"[\[<]", name)[0] for extra in extras.values() for name in extra}
    assert named <= {*lock("dev"), *lock("triton")}
