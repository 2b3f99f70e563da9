"""A Sphinx extension: names of the package that stand in `code` in a text lead to the API reference."""
import re

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform


class CodeLinks(SphinxPostTransform):
    "Turns `name` into a link where the package has exactly one function, class or constant of that name."
    default_priority = 5

    def run(self, **kwargs):
        objects = self.env.get_domain("py").objects
        by_name = self.names(objects)
        module = self.module_of_page()
        for literal in list(self.document.findall(nodes.literal)):
            if any(isinstance(parent, (nodes.reference, nodes.title)) for parent in self.parents(literal)): continue
            text = literal.astext().strip()
            m = re.fullmatch(r"([A-Za-z_][\w.]*)(\(.*\))?", text)
            if not m: continue
            full = self.target(m[1], bool(m[2]), by_name, objects, module)
            if not full or objects[full].docname == self.env.docname and full == module: continue
            place = objects[full]
            uri = self.app.builder.get_relative_uri(self.env.docname, place.docname) + "#" + place.node_id
            link = nodes.reference("", "", literal.deepcopy(), internal=True, refuri=uri, classes=["code-link"])
            literal.replace_self(link)

    @staticmethod
    def parents(node):
        while node.parent is not None:
            node = node.parent
            yield node

    def names(self, objects) -> dict[str, list[str]]:
        if not hasattr(self.env, "_peace_names"):
            found = {}
            for full, entry in objects.items():
                if entry.objtype in ("function", "class", "data"): found.setdefault(full.rpartition(".")[2], []).append(full)
            self.env._peace_names = found
        return self.env._peace_names

    def module_of_page(self) -> str:
        "The module that the page's notebook makes, or that the page describes."
        if self.env.docname.startswith("api/"): return self.env.docname.removeprefix("api/")
        for link in self.document.findall(nodes.reference):
            if "module-link" in link.get("classes", []): return link.astext()
        return ""

    def target(self, name: str, called: bool, by_name, objects, module: str) -> str | None:
        if name.startswith("peace_nb."): return name if name in objects else None
        if "." in name: return None
        found = by_name.get(name, [])
        own = [full for full in found if full.rpartition(".")[0] == module]
        if own: return own[0]
        telling = called or "_" in name.strip("_") or name != name.lower()   # a plain small word may mean something else
        return found[0] if len(found) == 1 and telling else None


def setup(app):
    app.add_post_transform(CodeLinks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
