"""Look at the finished pages: every local link, picture and anchor must exist, nothing is loaded from another host, no path of this machine shows."""
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src", "object": "data"}
LOADED_LINKS = {"stylesheet", "icon", "preload", "modulepreload", "prefetch"}


class Page(HTMLParser):
    "Links, anchors and loaded files of one page."
    def __init__(self, text: str):
        super().__init__()
        self.links, self.loads, self.anchors = [], [], {""}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        at = dict(attrs)
        for name in ("id", "name"):
            if at.get(name): self.anchors.add(at[name])
        if tag == "a" and at.get("href"): self.links.append(at["href"])
        if tag == "link" and at.get("href") and LOADED_LINKS & set((at.get("rel") or "").split()): self.loads.append(at["href"])
        if tag in LOADS and at.get(LOADS[tag]): self.loads.append(at[LOADS[tag]])


def check(folder: Path, root: Path) -> list[str]:
    "What is wrong with the pages below `folder`, a sentence each."
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html")
             if path.relative_to(folder).parts[0] != "_static"}   # where the theme keeps templates
    wrong = []
    for path, page in sorted(pages.items()):
        name = path.relative_to(folder.resolve()).as_posix()
        for kind, targets in (("links to", page.links), ("shows", page.loads)):
            for target in dict.fromkeys(targets):
                if problem := broken(path, target, kind, pages): wrong.append(f"{name} {kind} {target}, {problem}")
        text = path.read_text(encoding="utf-8")
        for place in {str(root), str(root.resolve()), str(Path.home()), sys.prefix}:
            if len(place) > 5 and place in text: wrong.append(f"{name} shows a path of this machine: {place}")
    return wrong


def broken(path: Path, target: str, kind: str, pages: dict) -> str | None:
    "Why a link or a picture does not work, or None."
    parts = urlsplit(target)
    if parts.scheme in ("data", "mailto", "javascript"): return None
    if parts.scheme or parts.netloc: return "which lies on another host" if kind == "shows" else None
    there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if there.is_dir(): there = there / "index.html"
    if not there.is_file(): return "which does not exist"
    if parts.fragment and there in pages and unquote(parts.fragment) not in pages[there].anchors and kind == "links to": return "which has no such place"
    return None
