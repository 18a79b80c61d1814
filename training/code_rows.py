"""Ordinary benign texts that every machine has: source code, and the JSON, config, shell and logs around it.

Taken from the installed standard library (its licence allows it and nothing is copied into the repository). Comments in
code say "ignore", "override" and "do not" all day long: a detector must have seen that this means nothing.
"""

from __future__ import annotations

import ast
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from training.corpus import Role, Row, stable_hash

MODULES = """
argparse asyncio/base_events asyncio/tasks bdb calendar cmd codecs collections/__init__ concurrent/futures/thread
configparser contextlib csv dataclasses datetime difflib doctest email/header email/message enum fileinput fractions
ftplib functools getpass gettext gzip heapq html/parser http/client http/cookiejar http/server imaplib
importlib/util inspect ipaddress json/decoder json/encoder locale logging/__init__ logging/config logging/handlers
mailbox mimetypes multiprocessing/pool netrc optparse os pathlib pdb pickle pickletools platform poplib posixpath
pprint profile queue random sched secrets shelve shlex shutil site smtplib socket socketserver sqlite3/dump ssl
statistics string subprocess sysconfig tarfile tempfile textwrap threading timeit tokenize trace traceback types
typing unittest/case unittest/mock urllib/parse urllib/request urllib/robotparser uuid venv/__init__ warnings wave
webbrowser xml/dom/minidom xmlrpc/client zipapp zipfile
"""
MIN_CHARS, MAX_CHARS = 200, 3000
ASKS = (
    "What does this do?",
    "Refactor this, please.",
    "Why is this slow?",
    "Add type hints:",
    "Write tests for this:",
    "",
)


def code_rows(count: int = 400) -> list[Row]:
    """About `count` functions and classes of the standard library and a quarter as many records drawn from them."""
    pieces = sorted(_pieces(), key=lambda piece: stable_hash("code", piece[0], piece[1]))[:count]
    rows = [_code_row(module, name, code) for module, name, code in pieces]
    described = [(module, name, doc) for module, name, code in pieces if (doc := _first_line(code))]
    for number in range(0, min(len(described), count // 4 * 3) - 2, 3):
        text, kind = _record(number // 3, described[number : number + 3])
        role: Role = ("tool", "document", "user")[stable_hash("record", number) % 3]
        rows.append(Row(text, 0, role, kind, "python_stdlib", "en", None, f"stdlib:{described[number][0]}"))
    return rows


def _code_row(module: str, name: str, code: str) -> Row:
    role: Role = ("tool", "document", "user")[stable_hash("role", module, name) % 3]
    if role == "user":
        ask = ASKS[stable_hash("ask", module, name) % len(ASKS)]
        code = f"{ask}\n\n```python\n{code}\n```" if ask else code
    return Row(code, 0, role, "source_code", "python_stdlib", "en", None, f"stdlib:{module}")


def _pieces() -> Iterator[tuple[str, str, str]]:
    """(module, name, source) of every function and class of a handy size."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for module in MODULES.split():
        path = root / f"{module}.py"
        if not path.is_file():
            continue
        source = path.read_text("utf-8", "replace")
        lines = source.splitlines()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                code = "\n".join(lines[node.lineno - 1 : node.end_lineno])
                if MIN_CHARS <= len(code) <= MAX_CHARS:
                    yield module.replace("/", ".").removesuffix(".__init__"), node.name, code


def _first_line(code: str) -> str:
    try:
        node = ast.parse(code.strip()).body[0]
    except SyntaxError:
        return ""  # a method whose body is indented further than its first line
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return ""
    return (ast.get_docstring(node) or "").split("\n")[0]


def _record(number: int, items: list[tuple[str, str, str]]) -> tuple[str, str]:
    """The same three facts as JSON, INI, YAML, shell or log lines."""
    style = number % 5
    if style == 0:
        found = [
            {"module": module, "name": name, "summary": doc, "score": round(0.9 - at / 10, 2)}
            for at, (module, name, doc) in enumerate(items)
        ]
        return json.dumps({"results": found, "next_page": None}, indent=None if number % 2 else 2), "json_result"
    if style == 1:
        return "\n".join(
            f"[{module}]\n; {doc}\nentry = {name}\nenabled = yes\n" for module, name, doc in items
        ), "config_file"
    if style == 2:
        return "\n".join(
            f"- name: {module}.{name}\n  description: {json.dumps(doc)}\n  retries: {len(doc) % 5}"
            for module, name, doc in items
        ), "config_file"
    if style == 3:
        lines = [
            f'# {doc}\npython3 -m {module} --{name.strip("_").lower()} "$1" || exit 1' for module, name, doc in items
        ]
        return "#!/bin/sh\nset -eu\n" + "\n".join(lines), "shell_script"
    levels = ("INFO", "WARNING", "ERROR")
    return "\n".join(
        f"2025-02-{10 + at:02d} 08:{number % 60:02d}:1{at} {levels[at]} {module}: {name}: {doc}"
        for at, (module, name, doc) in enumerate(items)
    ), "log_lines"
