"""The documentation: ``check`` proves it whole, ``build DIR`` adds the API pages.

Checked: every relative link and anchor in a Markdown file leads somewhere; every name in a
package's ``__all__`` has a docstring. The API pages are read from the source, never imported.
"""

from __future__ import annotations

import ast
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "headrace"
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def main(arguments: list[str]) -> int:
    """Run ``check`` or ``build DIR``; the exit status is the number of faults, at most 1."""
    match arguments:
        case ["check"]:
            faults = broken_links() + undocumented()
            for fault in faults:
                print(fault, file=sys.stderr)
            print(f"docs: {len(markdown_files())} pages, {len(faults)} faults")
            return min(len(faults), 1)
        case ["build", folder]:
            print(f"docs: {build(Path(folder))} pages in {folder}")
            return 0
    print(__doc__, file=sys.stderr)
    return 2


def markdown_files() -> list[Path]:
    """The pages people read: those at the top, and everything under docs/."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def broken_links() -> list[str]:
    """One line per relative link whose file, or whose anchor in that file, does not exist."""
    faults = []
    for page in markdown_files():
        for match in LINK.finditer(FENCE.sub("", page.read_text())):
            link = match[1] or match[2]
            if "://" in link or link.startswith("mailto:"):
                continue
            target, _, anchor = link.partition("#")
            file = (page.parent / target).resolve() if target else page
            if not file.exists():
                faults.append(f"{page.relative_to(ROOT)}: no such file: {link}")
            elif anchor and file.suffix == ".md" and anchor not in anchors(file):
                faults.append(f"{page.relative_to(ROOT)}: no such heading: {link}")
    return faults


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts derive them."""
    headings = re.findall(r"^#+\s+(.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


def undocumented() -> list[str]:
    """One line per public module, class or function of the package without a docstring."""
    return [
        f"{file.relative_to(ROOT)}: {name} has no docstring"
        for file in sorted(PACKAGE.rglob("*.py"))
        for name, _, text in public_names(file)
        if not text
    ]


def public_names(file: Path) -> list[tuple[str, str, str]]:
    """``(name, signature, docstring)`` of a module and of what it defines in public."""
    tree = ast.parse(file.read_text())
    found = [(module_name(file), "", ast.get_docstring(tree) or "")]
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            found.append((node.name, "", ast.get_docstring(node) or ""))
            found += [
                (f"{node.name}.{item.name}", signature(item), ast.get_docstring(item) or "")
                for item in node.body
                if isinstance(item, ast.FunctionDef) and not item.name.startswith("_")
            ]
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            found.append((node.name, signature(node), ast.get_docstring(node) or ""))
    return found


def module_name(file: Path) -> str:
    """``headrace.specs.units`` for its file."""
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def signature(node: ast.FunctionDef) -> str:
    """The arguments and result as written."""
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"({ast.unparse(node.args)}){returns}"


def build(folder: Path) -> int:
    """Copy docs/ to ``folder`` and write one API page per module; the number of pages."""
    shutil.copytree(ROOT / "docs", folder, dirs_exist_ok=True)
    api = folder / "api"
    api.mkdir(parents=True, exist_ok=True)
    index = ["# API", ""]
    for file in sorted(PACKAGE.rglob("*.py")):
        module, *names = public_names(file)
        lines = [f"# {module[0]}", "", module[2], ""]
        for name, arguments, text in names:
            lines += [f"## {name}", "", f"```python\n{name}{arguments}\n```", "", text, ""]
        (api / f"{module[0]}.md").write_text("\n".join(lines))
        index.append(f"- [{module[0]}]({module[0]}.md): {module[2].splitlines()[0]}")
    (api / "index.md").write_text("\n".join(index) + "\n")
    return len(list(folder.rglob("*.md")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
