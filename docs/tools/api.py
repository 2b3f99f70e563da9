"""The API reference, read from the package's source: docstrings, and the comments beside parameters. Nothing is imported."""
import ast
import io
import re
import tokenize
from collections import Counter
from pathlib import Path


def comments_of(code: str) -> dict[int, str]:
    "Line → the comment on it."
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type == tokenize.COMMENT: found[token.start[0]] = token.string.lstrip("#").strip()
    return found


def _above(line: int, comments: dict, code: list[str]) -> str:
    "Comment lines that stand alone directly above a line."
    found = []
    while line > 1 and re.match(r"\s*#(?! %%)", code[line - 2]):   # `# %%` marks where a cell of the notebook begins
        line -= 1
        found.append(comments.get(line, ""))
    return " ".join(reversed(found))


def parameters(node: ast.FunctionDef, comments: dict, code: list[str]) -> list[dict]:
    "One row per parameter, and one for what is returned: name, type, default, what it is."
    args, rows = node.args, []
    plain = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(plain) - len(args.defaults)) + list(args.defaults)
    every = [("", a, d) for a, d in zip(plain, defaults)]
    if args.vararg: every.append(("*", args.vararg, None))
    every += [("", a, d) for a, d in zip(args.kwonlyargs, args.kw_defaults)]
    if args.kwarg: every.append(("**", args.kwarg, None))
    last_on = {a.lineno: i for i, (_, a, _) in enumerate(every)}   # a comment belongs to the last parameter on its line
    for i, (star, arg, default) in enumerate(every):
        if i == 0 and arg.arg in ("self", "cls"): continue
        told = comments.get(arg.lineno, "") if last_on[arg.lineno] == i else ""
        rows.append({"name": star + arg.arg, "type": ast.unparse(arg.annotation) if arg.annotation else "",
                     "default": ast.unparse(default) if default is not None else "", "what": told or (_above(arg.lineno, comments, code) if arg.lineno > node.lineno else "")})
    lines = [a.lineno for _, a, _ in every]
    closing = range(max(lines, default=node.lineno) + bool(lines), max(node.body[0].lineno, node.lineno + 1))
    if node.returns: closing = range(node.returns.lineno, max(node.body[0].lineno, node.returns.lineno + 1))
    told = next((comments[n] for n in closing if n in comments and not code[n - 1].strip().startswith("#")), "")
    if node.returns and node.returns.lineno in lines: told = ""   # the comment of a parameter on the same line
    if node.returns or told: rows.append({"name": "returns", "type": ast.unparse(node.returns) if node.returns else "", "default": "", "what": told})
    return rows


def code_text(text: str) -> str:
    "A piece of code as it may stand in a table."
    return f"`{text}`".replace("|", "\\|") if text else ""


def prose(text: str) -> str:
    "A docstring as Markdown: pipes and stars of signatures do no harm."
    return re.sub(r"(?<![\w*`])(\*{1,2})(?=[A-Za-z_]+\b(?!\*))", lambda m: m[1].replace("*", "\\*"), text.strip())


def table(rows: list[dict]) -> str:
    "Parameters as a table; columns that are empty throughout are left out."
    columns = [c for c in ("type", "default", "what") if any(r[c] for r in rows)]
    if set(columns) <= {"default"}: return ""   # names and defaults alone: the signature has them
    heads = {"type": "type", "default": "default", "what": "what it is"}
    lines = ["| parameter | " + " | ".join(heads[c] for c in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        cells = [prose(row[c]).replace("|", "\\|") if c == "what" else code_text(row[c]) for c in columns]
        name = "*returns*" if row["name"] == "returns" else code_text(row["name"])
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(["{.parameters}", *lines])


def signature(node: ast.FunctionDef) -> str:
    "Names and short defaults; types stand in the table."
    args = node.args
    def with_default(arg, default):
        if default is None: return arg.arg
        text = ast.unparse(default)
        return f"{arg.arg}={text if len(text) <= 24 and not isinstance(default, ast.Lambda) else '...'}"
    plain = [*args.posonlyargs, *args.args]
    parts = [with_default(a, d) for a, d in zip(plain, [None] * (len(plain) - len(args.defaults)) + list(args.defaults))]
    if parts and parts[0] in ("self", "cls"): parts.pop(0)
    if args.vararg: parts.append(f"*{args.vararg.arg}")
    elif args.kwonlyargs: parts.append("*")
    parts += [with_default(a, d) for a, d in zip(args.kwonlyargs, args.kw_defaults)]
    if args.kwarg: parts.append(f"**{args.kwarg.arg}")
    return f"({', '.join(parts)})"


def block(kind: str, head: str, body: str, depth: int, options: str = "") -> str:
    "A directive whose fence is longer the less deep it stands."
    fence = ":" * (8 - depth)
    return f"{fence}{{py:{kind}}} {head}\n{options}\n{body}\n{fence}\n"


def is_public(name: str) -> bool: return not name.startswith("_")


def decorated(node) -> set[str]: return {ast.unparse(d).split("(")[0].rpartition(".")[2] for d in node.decorator_list}


def function(node, comments, code, kind="function", depth=0, name=None) -> str:
    rows = parameters(node, comments, code)
    if kind == "method" and decorated(node) & {"property", "cached_property"}: return block("property", name or node.name, prose(ast.get_docstring(node) or ""), depth)
    if "patch" in decorated(node): rows = [r for r in rows if r["name"] != "self"]
    return block(kind, (name or node.name) + signature(node), f"{prose(ast.get_docstring(node) or '')}\n\n{table(rows)}", depth)


def fields(node: ast.ClassDef, comments, code) -> list[dict]:
    "The annotated fields of a class."
    found = []
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and is_public(item.target.id):
            value = ast.unparse(item.value) if item.value is not None else ""
            found.append({"name": item.target.id, "type": ast.unparse(item.annotation), "default": value if len(value) <= 60 else "…",
                          "what": comments.get(item.end_lineno, "") or _above(item.lineno, comments, code)})
    return found


def klass(node: ast.ClassDef, patched: list, comments, code) -> str:
    inside = [item for item in node.body if isinstance(item, ast.FunctionDef)]
    init = next((item for item in inside if item.name == "__init__"), None)
    parts = [prose(ast.get_docstring(node) or "")]
    bases = [ast.unparse(b) for b in node.bases]
    if bases: parts.append(f"Built on {', '.join(f'`{b}`' for b in bases)}.")
    rows = fields(node, comments, code)
    if init: rows = rows + parameters(init, comments, code)
    parts.append(table([r for r in rows if r["name"] != "returns"]))
    for item in [*inside, *patched]:
        if is_public(item.name) and (ast.get_docstring(item) or item in patched): parts.append(function(item, comments, code, "method", 1))
    return block("class", node.name + (signature(init) if init else ""), "\n\n".join(p for p in parts if p), 0)


def constant(node, name: str, comments, code) -> str:
    value = ast.unparse(node.value) if node.value is not None else ""
    told = comments.get(node.end_lineno, "") or comments.get(node.lineno, "") or _above(node.lineno, comments, code)
    options = f":value: {value}\n" if 0 < len(value) <= 60 and "\n" not in value else ""
    return block("data", name, prose(told), 0, options)


def exported(tree: ast.Module) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__": return ast.literal_eval(node.value)
    return []


def own_class(node) -> str | None:
    "The class a `@patch` function belongs to."
    if "patch" not in decorated(node) or not node.args.args or node.args.args[0].annotation is None: return None
    return ast.unparse(node.args.args[0].annotation).rpartition(".")[2]


def module_page(path: Path, module: str, notebook: str | None) -> tuple[str, str]:
    "A module's page, and its first sentence."
    code = path.read_text(encoding="utf-8")
    tree, comments, lines = ast.parse(code), comments_of(code), code.splitlines()
    names, doc = exported(tree), ast.get_docstring(tree) or ""
    by_class, parts = {}, []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and (owner := own_class(node)): by_class.setdefault(owner, []).append(node)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in names and own_class(node) is None: parts.append(function(node, comments, lines))
        elif isinstance(node, ast.ClassDef) and node.name in names: parts.append(klass(node, by_class.pop(node.name, []), comments, lines))
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for one in target.elts if isinstance(target, ast.Tuple) else [target]:
                    if isinstance(one, ast.Name) and one.id in names and one.id != "__all__": parts.append(constant(node, one.id, comments, lines))
    for owner, patched in by_class.items():   # methods that this module adds to a class of another
        parts += [function(node, comments, lines, name=f"{owner}.{node.name}") for node in patched if is_public(node.name)]
    made = f"Made by the notebook [](/nbs/{notebook})." if notebook else ""
    head = f"# `{module}`\n\n{doc}{'.' if doc and doc[-1] not in '.!?' else ''} {made}\n\n```{{py:module}} {module}\n```\n\n"
    return head + "\n".join(parts), doc


def stage_api(root: Path, out, modules: dict[Path, str]) -> int:
    "A page per module and an index; returns how many modules there are."
    notebook = {module: path.relative_to(root / "nbs").as_posix() for path, module in modules.items()}
    rooms: dict[str, list] = {}
    for path in sorted((root / "peace_nb").rglob("*.py")):
        if path.name.startswith("_"): continue
        parts = path.relative_to(root).with_suffix("").parts
        module = ".".join(parts)
        text, doc = module_page(path, module, notebook.get(module))
        out.write(f"api/{module}.md", text)
        rooms.setdefault(parts[1] if len(parts) > 2 else "", []).append((module, doc.splitlines()[0] if doc else ""))
    def listed(modules): return "\n".join(["| module | what it holds |", "|---|---|", *(f"| [`{m}`](/api/{m}.md) | {d} |" for m, d in modules)])
    def tree(entries): return "```{toctree}\n:hidden:\n\n" + "\n".join(entries) + "\n```\n"
    def entry(module): return f"{module.rpartition('.')[2]} </api/{module}>"
    for room, modules in rooms.items():
        if room: out.write(f"api/{room}.md", f"# Modules of `{room}`\n\n{listed(modules)}\n\n{tree(entry(m) for m, _ in modules)}")
    text = ["# API reference", "", "All public names, with what the source says about them: one page per module. Each page leads to the notebook that makes the module, "
            "where the code is explained and tested.", ""]
    for room, modules in rooms.items(): text += [f"## {room or 'At the top'}", "", listed(modules), ""]
    entries = [entry(m) for m, _ in rooms.get("", [])] + [f"{room} </api/{room}>" for room in rooms if room]
    out.write("api/index.md", "\n".join(text) + "\n" + tree(entries))
    return sum(map(len, rooms.values()))


def imported_rooms(path: Path, package: Path) -> set[str]:
    "Rooms (or modules at the top) that a module imports, inside functions too."
    here, found = path.relative_to(package).with_suffix("").parts, set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom): continue
        if node.level: parts = [*here[:-node.level], *(node.module.split(".") if node.module else [])]
        elif (node.module or "").split(".")[0] == package.name: parts = node.module.split(".")[1:]
        else: continue
        found |= {parts[0]} if parts else {a.name for a in node.names}
    return found


def rooms_table(root: Path, rooms: list[dict]) -> str:
    "What the house looks like today: modules, lines and imports per room, read from the source."
    package = root / "peace_nb"
    places = {p.name for p in package.iterdir() if p.is_dir()} | {p.stem for p in package.glob("*.py")}
    lines, modules, uses = Counter(), Counter(), {}
    for path in package.rglob("*.py"):
        if path.name.startswith("_"): continue
        room = path.relative_to(package).parts[0].removesuffix(".py")
        lines[room] += len(path.read_text(encoding="utf-8").splitlines())
        modules[room] += 1
        uses.setdefault(room, set()).update(imported_rooms(path, package) & places - {room})
    def height(room, seen=()) -> int: return 0 if room in seen else 1 + max((height(o, (*seen, room)) for o in uses[room]), default=-1)
    order = sorted(uses, key=lambda r: (-height(r), r))
    total = sum(lines.values())
    known = {r["room"] for r in rooms}
    rows = ["| room | modules | share of the code | imports from |", "|---|---|---|---|"]
    for room in order:
        name = f"[`{room}`](/nbs/{room}/index.md)" if room in known else f"[`{room}`](/api/peace_nb.{room}.md)"
        rows.append(f"| {name} | {modules[room]} | {100 * lines[room] / total:.0f} % | {', '.join(sorted(uses[room])) or '–'} |")
    return "\n".join(rows)
