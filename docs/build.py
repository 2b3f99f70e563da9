"""Build the documentation: `python docs/build.py`, or with `--serve` to look at it in a browser.

Nothing is run and nothing is fetched: the pages come from the notebooks with their kept outputs, the package's source,
the reference tables, and the texts in `docs/pages`. A build with a broken link or a missing output fails and names it.
"""
import argparse
import functools
import http.server
import sys
import time
import webbrowser
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(DOCS), str(ROOT)]

from tools import check, stage  # noqa: E402


def build(out: Path) -> list[str]:
    "Build the site below `out`; returns what is wrong with it, a sentence each."
    from sphinx.cmd.build import main as sphinx
    wrong = stage.stage(ROOT, out / "source")
    if wrong: return wrong
    code = sphinx(["-q", "-n", "-W", "--keep-going", "-j", "2", "-b", "html", "-c", str(DOCS), "-d", str(out / "doctrees"), str(out / "source"), str(out / "html")])
    if code: return ["Sphinx stopped at the warnings above; each names its page."]
    return check.check(out / "html", ROOT)


def serve(folder: Path, port: int = 8000):
    "Serve a folder to this machine alone and open it; ends with Ctrl-C."
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    try: server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError: server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)   # the port is taken: any other
    address = f"http://127.0.0.1:{server.server_address[1]}/"
    print(f"{address} (Ctrl-C ends it)", flush=True)
    webbrowser.open(address)
    try: server.serve_forever()
    except KeyboardInterrupt: server.server_close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--serve", action="store_true", help="open the site in a browser when it is built")
    parser.add_argument("--out", type=Path, default=DOCS / "_build", help="where it is built")
    options = parser.parse_args()
    begin = time.perf_counter()
    wrong = build(options.out)
    for sentence in wrong: print(f"site: {sentence}", file=sys.stderr)
    if wrong: return 1
    pages = list((options.out / "html").rglob("*.html"))
    size = sum(path.stat().st_size for path in (options.out / "html").rglob("*") if path.is_file())
    print(f"{options.out / 'html' / 'index.html'}: {len(pages)} pages, {size / 1e6:.0f} MB, {time.perf_counter() - begin:.0f} s")
    if options.serve: serve(options.out / "html")
    return 0


if __name__ == "__main__": sys.exit(main())
