"""Calls that no file of the package may make."""

from __future__ import annotations

import ast

import pytest

from tests.support.paths import PACKAGE

MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "imp", "xmlrpc", "telnetlib"}
CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "os.execl", "os.startfile",
    "subprocess.getoutput", "subprocess.getstatusoutput", "tempfile.mktemp", "yaml.load",
    "ssl._create_unverified_context", "ssl.wrap_socket", "random.seed", "pty.spawn", "np.fromfile", "np.memmap",
}  # fmt: skip
# (call, keyword) -> the one harmless value.
KEYWORDS = {"shell": False, "allow_pickle": False, "verify": True}


def offences(tree: ast.AST) -> list[str]:
    """The forbidden calls, each with its line."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [f"{node.lineno}: {one.name}" for one in node.names if one.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.append(f"{node.lineno}: {node.module}")
        elif isinstance(node, ast.Call):
            if ast.unparse(node.func) in CALLS:
                found.append(f"{node.lineno}: {ast.unparse(node.func)}")
            for keyword in node.keywords:
                safe = isinstance(keyword.value, ast.Constant) and keyword.value.value is KEYWORDS.get(
                    keyword.arg or ""
                )
                if keyword.arg in KEYWORDS and not safe:
                    found.append(f"{node.lineno}: {keyword.arg}={ast.unparse(keyword.value)}")
            if ast.unparse(node.func) == "np.load" and not any(one.arg == "allow_pickle" for one in node.keywords):
                found.append(f"{node.lineno}: np.load without allow_pickle=False")
    return found


def test_nothing_that_is_read_is_ever_run() -> None:
    """No pickle, no eval, no shell, no unchecked certificates, in any file of the package."""
    found = {str(path): offences(ast.parse(path.read_text())) for path in PACKAGE.glob("**/*.py")}
    assert {path: what for path, what in found.items() if what} == {}


@pytest.mark.parametrize(
    "line",
    ["import pickle", "from pickle import loads", "eval(x)", "subprocess.run(x, shell=True)", "np.load(f)",
     "np.load(f, allow_pickle=flag)", "os.system('x')", "import marshal as m"],
)  # fmt: skip
def test_each_of_these_would_be_found(line: str) -> None:
    """The test above can fail."""
    assert offences(ast.parse(line))


def test_what_is_harmless_is_not() -> None:
    """Harmless calls are not reported."""
    assert offences(ast.parse("import json\nsubprocess.run(['x'], shell=False)\nnp.load(f, allow_pickle=False)")) == []
