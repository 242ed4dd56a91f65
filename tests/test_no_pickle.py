"""Nothing that comes over a socket can run code: nothing in our packages unpickles, or evaluates, what it is sent."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("operator", "workers", "placement", "proto")
MODULES = ("pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "xmlrpc", "multiprocessing")
METHODS = ("recv_pyobj", "send_pyobj", "recv_serialized", "unsafe_load", "full_load", "read_pickle")
BUILTINS = ("eval", "exec", "compile")
_NAMED = re.compile("|".join([*MODULES, *METHODS, r"load(_all)?\(", *(rf"\b{name}\(" for name in BUILTINS)]))
UNSAFE_LOADERS = ("", "yaml.Loader", "yaml.FullLoader", "yaml.UnsafeLoader")


def offences(source: str) -> list[str]:
    """What a module does that it must not; only those that name any of it are parsed."""
    if not _NAMED.search(source):
        return []
    return [found for node in ast.walk(ast.parse(source)) for found in _offences(node)]


def _offences(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name.split(".")[0] in MODULES)
    elif isinstance(node, ast.ImportFrom):
        named = [*(node.module or "").split(".")[:1], *(alias.name for alias in node.names)]
        yield from (name for name in named if name in MODULES)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
        yield from _calls(node)


def _calls(node: ast.Call) -> Iterator[str]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    if name in METHODS:
        yield name
    if isinstance(node.func, ast.Name) and node.func.id in BUILTINS:
        yield node.func.id
    if name not in ("load", "load_all"):
        return
    called = ast.unparse(node.func)
    if "allow_pickle" in given and ast.unparse(given["allow_pickle"]) != "False":
        yield f"{called} with pickles"
    if called == "torch.load":
        yield called
    loader = given.get("Loader", node.args[1] if len(node.args) > 1 else None)
    if called.startswith("yaml.") and (ast.unparse(loader) if loader else "") in UNSAFE_LOADERS:
        yield f"{called} of anything"


def test_our_packages_unpickle_and_evaluate_nothing() -> None:
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert len(paths) > 300
    found = {str(path.relative_to(ROOT)): offences(path.read_text()) for path in paths}
    assert {path: what for path, what in found.items() if what} == {}


def test_the_check_sees_what_it_looks_for() -> None:
    wrong = [
        "import pickle",
        "from ray import cloudpickle",
        "from multiprocessing.connection import Listener",
        "sock.recv_pyobj()",
        "numpy.load(path, allow_pickle=True)",
        "torch.load(path)",
        "yaml.load(text, Loader=yaml.Loader)",
        "eval(text)",
    ]
    assert [source for source in wrong if not offences(source)] == []
    right = ["np.load(path, allow_pickle=False)", "yaml.safe_load(text)", "re.compile(text)", "model.eval()"]
    assert [source for source in right if offences(source)] == []
