"""`make chart`: charts/atelier/README.md from the comments of values.yaml (`# -- ...`, as helm-docs reads them) and the schema's pools."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parent / "atelier"
HEAD = """# atelier {version}

{description}

```
helm install atelier charts/atelier
```

puts Atelier on a cluster with no GPU, no operator and no database, and says what to type for the first picture.
[docs/kubernetes.md](../../docs/kubernetes.md) is for whoever operates it: sizes, GPUs, scaling, upgrades, backups, permissions.
Kubernetes {kubernetes}, Helm 3 or 4.

This page is made of `values.yaml` by `make chart`.

## Values

The schema is closed: a key that does not stand here is refused.

| key | default | what |
|---|---|---|
"""
POOLS = """
## A pool

`pools` is a list of these; `name` has to be there.

| key | default | what |
|---|---|---|
"""


class Undocumented(Exception):
    """Values without a comment."""


@dataclass(frozen=True, kw_only=True)
class Value:
    """A documented key."""

    key: str
    default: Any
    text: str


def values(text: str) -> list[Value]:
    """All documented keys of a values.yaml. Raises Undocumented, naming every other leaf."""
    tree = yaml.compose(text, Loader=yaml.SafeLoader)
    found, missing = list(_documented(tree, text.splitlines(), "")), []
    for path in _leaves(yaml.safe_load(text), ""):
        if not any(path == value.key or path.startswith(f"{value.key}.") for value in found):
            missing.append(path)
    if missing:
        raise Undocumented(f"values without a comment (`# -- ...`): {', '.join(missing)}")
    return found


def readme(folder: Path = CHART) -> str:
    """The page."""
    chart = yaml.safe_load((folder / "Chart.yaml").read_text())
    schema = json.loads((folder / "values.schema.json").read_text())
    head = HEAD.format(version=chart["version"], description=chart["description"], kubernetes=chart["kubeVersion"].removesuffix("-0"))
    rows = [_row(value.key, json.dumps(value.default), value.text) for value in values((folder / "values.yaml").read_text())]
    pools = []
    for key, facts in schema["$defs"]["pool"]["properties"].items():
        pools.append(_row(key, json.dumps(facts["default"]) if "default" in facts else "", facts["description"]))
    return head + "".join(rows) + POOLS + "".join(pools)


def main() -> None:
    """Writes the page; with `--check` says whether it is as it should be."""
    path, page = CHART / "README.md", readme()
    if "--check" not in sys.argv[1:]:
        path.write_text(page)
    elif not path.exists() or path.read_text() != page:
        sys.exit("charts/atelier/README.md is not what values.yaml says: run `make chart`")


def _row(key: str, default: str, text: str) -> str:
    shown = f"`{default}`" if default and len(default) <= 60 else "see `values.yaml`" if default else ""
    return f"| `{key}` | {shown.replace('|', chr(92) + '|')} | {text.replace('|', chr(92) + '|')} |\n"


def _documented(node: Any, lines: list[str], above: str) -> Iterator[Value]:
    """Keys with a comment right above them; what is below a documented mapping may be documented as well."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        path = f"{above}{key.value}"
        text = _comment(lines, key.start_mark.line)
        if text:
            yield Value(key=path, default=yaml.SafeLoader("").construct_document(value), text=text)
        else:
            yield from _documented(value, lines, f"{path}.")


def _comment(lines: list[str], line: int) -> str:
    words: list[str] = []
    while line > 0 and (match := re.match(r"\s*#\s*(-- )?(.*)", lines[line - 1])):
        words.insert(0, match[2])
        if match[1]:
            return " ".join(words)
        line -= 1
    return ""


def _leaves(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from _leaves(below, f"{path}.{key}" if path else key)
    else:
        yield path


if __name__ == "__main__":
    main()
