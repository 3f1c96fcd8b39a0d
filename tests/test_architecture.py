"""DESIGN.md's layout and import rules, held by parsing the sources (nothing is imported)."""

from __future__ import annotations

import ast
import collections
import functools
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {
    "core": set(),
    "formats": {"core"},
    "kernels": {"core"},
    "embeddings": {"core", "formats", "kernels"},
    "checkpoints": {"core", "formats", "embeddings"},
    "dataloading": {"core", "formats", "kernels"},
    "models": {"core", "formats", "kernels", "embeddings"},
    "training": {
        *("core", "formats", "kernels", "embeddings", "checkpoints", "dataloading", "models"),
    },
    "serving": {
        *("core", "formats", "kernels", "embeddings", "checkpoints", "dataloading", "models"),
        "training",
    },
    "workflows": {"core", "formats"},
}
"""What each package may import of ours. Benchmarks and doors
(`__main__.py` too) may import everything."""

PACKAGES = (*FLOORS, "benchmarks")
DOORS = ("api", "cli", "train")

COMMUNICATION = {"horovod", "sparse_operation_kit"}
MAY_COMMUNICATE = ("embeddings/backends/", "training/parallel/")
PICKLES = {"pickle", "cloudpickle", "joblib", "dill", "shelve"}
LOADS_ITS_OWN = "benchmarks/serving_core_worker.py"  # a workflow that it has just written
WRITES_A_PICKLE = "workflows/saved.py"
LOADING = ("Workflow", "pickle")

# Lines of code, without docstrings, comments and blank lines.
LONGEST_FILE = 500
LONGEST_FUNCTION = 60


def _relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def sources() -> list[Path]:
    files = [ROOT / "__init__.py", *(ROOT / f"{name}.py" for name in DOORS)]
    for package in PACKAGES:
        files += sorted((ROOT / package).rglob("*.py"))
    return files


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all that a module imports, at its top or inside its functions.

    `from a import b` gives both a and a.b, since b may be a module.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("lookback", *parts)).removesuffix(".__init__")


def our_packages(tree: ast.AST) -> set[str]:
    """Packages of ours that a module imports."""
    names = (name.split(".") for name in imports(tree))
    return {parts[1] for parts in names if parts[0] == "lookback" and len(parts) > 1}


def registry(package: str, name: str) -> list[str]:
    """The keys of a registry, a dict literal in the package's __init__.py."""
    for node in parse(ROOT / package / "__init__.py").body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            value = getattr(node, "value", None)
            assert isinstance(value, ast.Dict), f"{package}.{name} is not a dict literal"
            return [ast.literal_eval(key) for key in value.keys if key is not None]
    raise AssertionError(f"{package}/__init__.py assigns no {name}")


@pytest.mark.parametrize("package", PACKAGES)
def test_package_has_a_documented_init(package: str) -> None:
    init = ROOT / package / "__init__.py"
    assert init.exists(), f"{package}/ of DESIGN.md's layout is missing"
    assert ast.get_docstring(parse(init)), f"{_relative(init)} says nothing about its package"


def test_our_modules_are_imported_by_their_full_names() -> None:
    flat = [
        f"{_relative(path)} imports {name}"
        for path in [*sources(), *(ROOT / "tests").rglob("*.py")]
        for name in imports(parse(path))
        if name.split(".")[0] in {*PACKAGES, *DOORS}
    ]
    assert not flat


@pytest.mark.parametrize("package", FLOORS)
def test_imports_keep_one_direction(package: str) -> None:
    wrong = [
        f"{_relative(path)} imports {name}"
        for path in sources()
        if _relative(path).split("/")[0] == package and path.name != "__main__.py"
        for name in our_packages(parse(path)) & set(PACKAGES)
        if name not in {package, *FLOORS[package]}
    ]
    assert not wrong


def test_no_files_import_each_other_in_a_circle() -> None:
    """Imports for type checkers and inside functions count, too: they join files as well."""
    modules = {module_name(path): path for path in sources()}
    graph = {
        name: {other for other in imports(parse(path)) if other in modules and other != name}
        for name, path in modules.items()
    }
    for name, path in modules.items():  # a package's registry imports what is in it
        if path.name == "__init__.py":
            for other in graph:
                graph[other].discard(name) if other.startswith(f"{name}.") else None
    while graph:  # takes away what imports nothing that is left
        free = {name for name, others in graph.items() if not others & graph.keys()}
        if not free:
            break
        graph = {name: others for name, others in graph.items() if name not in free}
    circle = {name: sorted(others & graph.keys()) for name, others in graph.items()}
    assert not circle


def test_only_backends_and_process_setup_import_horovod_or_sok() -> None:
    wrong = [
        f"{_relative(path)} imports {name}"
        for path in sources()
        if not _relative(path).startswith(MAY_COMMUNICATE)
        for name in imports(parse(path))
        if name.split(".")[0] in COMMUNICATION
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("text", "owner"),
    [
        ("lookback-histories", "formats/dataset_info.py"),
        ("lookback-tabular", "formats/dataset_info.py"),
        ("dataset.json", "formats/dataset_info.py"),
        ("schema.pbtxt", "formats/schema.py"),
        ("items.parquet", "formats/histories.py"),
        ("feature_spec.yaml", "formats/description.py"),
        ("label.bin", "formats/feature_spec.py"),
        ("numerical.bin", "formats/feature_spec.py"),
        ("channel_spec", "formats/feature_spec.py"),
    ],
)
def test_a_format_s_name_stands_in_one_file(text: str, owner: str) -> None:
    """As a string on its own, that is; errors and docstrings may speak of it."""
    found = {
        _relative(path)
        for path in sources()
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Constant) and node.value == text
    }
    assert found == {owner}


# What opens a Parquet or Arrow file, and with an old pyarrow runs what is in it (CVE-2023-47248).
OPENERS = {"ParquetDataset", "open_file", "open_stream", "read_feather", "read_metadata"}
OPENERS |= {"read_pandas", "read_parquet", "read_schema", "read_table"}


def _opens_arrow(node: ast.AST) -> bool:
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("ParquetFile"):
        return True
    if not isinstance(node, ast.Attribute) or node.attr not in OPENERS:
        return False
    return ast.unparse(node.value) in ("pq", "pa.ipc", "ipc", "pd", "dd", "feather")


def test_arrow_files_are_opened_in_one_place() -> None:
    wrong = [
        f"{_relative(path)}:{node.lineno}: {ast.unparse(node)}"
        for path in sources()
        if path.name != "arrow_files.py"
        for node in ast.walk(parse(path))
        if _opens_arrow(node)
    ]
    assert not wrong


def test_nothing_is_unpickled() -> None:
    """Datasets, workflows, checkpoints and bundles are read as data."""
    wrong = []
    for path in sources():
        tree = parse(path)
        wrong += [
            f"{_relative(path)} imports {name}"
            for name in PICKLES.intersection(imports(tree))
            if _relative(path) != WRITES_A_PICKLE
        ]
        wrong += [
            f"{_relative(path)}:{node.lineno} calls {ast.unparse(node)}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and (node.attr == "load" and ast.unparse(node.value).endswith(LOADING))
            and _relative(path) != LOADS_ITS_OWN
        ]
        wrong += [
            f"{_relative(path)} passes allow_pickle"
            for node in ast.walk(tree)
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle"
        ]
    assert not wrong


def _words(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Words of identifiers and of strings other than docstrings, with their lines."""
    prose = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        text = ""
        if isinstance(node, ast.Name):
            text = node.id
        elif isinstance(node, ast.Attribute):
            text = node.attr
        elif isinstance(node, ast.arg | ast.keyword):
            text = node.arg or ""
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            text = node.name
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = "" if id(node) in prose else node.value
        for word in re.findall(r"[a-z0-9]+", text.lower()):
            yield getattr(node, "lineno", 0), word


@pytest.mark.parametrize("package", ["training", "embeddings", "dataloading"])
def test_no_model_is_named_outside_models(package: str) -> None:
    names = set(registry("models", "MODELS"))
    wrong = [
        f"{_relative(path)}:{line} names {word}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for line, word in _words(parse(path))
        if word in names
    ]
    assert not wrong


def _is_main_guard(node: ast.If) -> bool:
    test = ast.unparse(node.test)
    return test in ("__name__ == '__main__'", "TYPE_CHECKING", "typing.TYPE_CHECKING")


def _acts(node: ast.stmt) -> bool:
    """Whether a statement at the top of a module does anything when the module is imported."""
    definitions = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    if isinstance(node, definitions):
        return False
    if isinstance(node, ast.Expr):
        return not isinstance(node.value, ast.Constant)
    if isinstance(node, ast.If):
        return not _is_main_guard(node)
    if isinstance(node, ast.Try):  # an optional import
        parts = [*node.body, *node.orelse, *(line for h in node.handlers for line in h.body)]
        return any(_acts(part) for part in parts)
    if isinstance(node, ast.Assign | ast.AnnAssign):
        effects = {"init", "open", "mkdir", "makedirs", "touch", "write_text", "write_bytes", "run"}
        called = (call.func for call in ast.walk(node) if isinstance(call, ast.Call))
        return any(getattr(f, "attr", getattr(f, "id", "")) in effects for f in called)
    return True


def test_importing_a_module_does_nothing() -> None:
    wrong = [
        f"{_relative(path)}:{node.lineno}: {ast.unparse(node).splitlines()[0]}"
        for path in sources()
        for node in parse(path).body
        if _acts(node)
    ]
    assert not wrong


def _code_lines(path: Path, tree: ast.Module) -> list[int]:
    """Numbers of the lines that hold code: no docstring, comment or blank line."""
    prose: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            prose.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return [
        number
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if number not in prose and line.strip() and not line.strip().startswith("#")
    ]


def test_files_and_functions_stay_readable() -> None:
    long = []
    for path in sources():
        tree = parse(path)
        lines = _code_lines(path, tree)
        if len(lines) > LONGEST_FILE:
            long.append(f"{_relative(path)}: {len(lines)} lines of code, at most {LONGEST_FILE}")
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            body = range(node.body[0].lineno, (node.end_lineno or 0) + 1)
            length = sum(number in body for number in lines)
            if length > LONGEST_FUNCTION:
                long.append(
                    f"{_relative(path)}:{node.lineno} {node.name}: {length} lines of code, "
                    f"at most {LONGEST_FUNCTION}"
                )
    assert not long


def _project_files() -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listing.returncode:
        pytest.skip("not a git checkout, so there is no list of the project's own files")
    paths = (ROOT / name for name in listing.stdout.decode().split("\0") if name)
    return [path for path in paths if path.is_file() and path.stat().st_size < 2_000_000]


def test_no_file_names_a_registry_or_a_path_of_this_machine() -> None:
    # Put together here, so that this file does not name them either.
    registries = ["py" + "pi.org", "python" + "hosted.org", "npm" + "js.org", "deb." + "debian.org"]
    home = "" if str(Path.home()) == "/" else f"{Path.home()}/"
    machine = [text for text in (f"{ROOT}/", home, "/wor" + "k/") if text]
    wrong = []
    for path in _project_files():
        for number, line in enumerate(path.read_bytes().decode(errors="ignore").splitlines(), 1):
            wrong += [
                f"{_relative(path)}:{number} contains {text}"
                for text in registries + machine
                if text in line
            ]
    assert not wrong


def test_sources_are_named_so_that_a_stranger_can_look_them_up() -> None:
    """Not by the numbers that the project's members have for documents and tasks."""
    numbers = re.compile(r"\bseeds? 0\d\d\b|\bissue ([A-Z]|\d+)\b", re.IGNORECASE)
    wrong = [
        f"{_relative(path)}:{number} says {found[0]}"
        for path in _project_files()
        for number, line in enumerate(path.read_bytes().decode(errors="ignore").splitlines(), 1)
        if (found := numbers.search(line))
    ]
    assert not wrong


def test_readme_names_only_files_that_exist() -> None:
    top = "|".join((*PACKAGES, "scripts", "tests", "docs", "requirements"))
    named = re.findall(rf"\b((?:{top})/[\w./-]+\.(?:py|sh|txt|in|md|yaml))", _readme())
    missing = sorted({name for name in named if not (ROOT / name).exists()})
    assert not missing


def _readme() -> str:
    return (ROOT / "README.md").read_text()


def test_the_longest_tests_are_named_as_they_are() -> None:
    names = ast.parse((ROOT / "tests" / "conftest.py").read_text())
    (longest,) = (
        ast.literal_eval(node.value)
        for node in names.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LONGEST"
    )
    assert [name for name in longest if not (ROOT / "tests" / name).is_file()] == []


def test_a_public_class_has_a_name_of_its_own() -> None:
    places = collections.defaultdict(list)
    for path in sources():
        if _relative(path).startswith("benchmarks/"):
            continue  # baselines and contenders are called as what they are compared with
        for node in parse(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(_relative(path))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
