"Drafting texts with Gemini: the real client library talks to a small server on this machine, never to the network."
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from peace_nb.knowledge import descriptors as K, drafting as D
from peace_nb.settings import PeaceError

KEY = "test-key-of-nobody"
GOOD = {"rhythm": "Sinus rhythm with a long PR interval above 200 ms.", "morphology": "Drafted QRS text.", "st_t": "Drafted repolarisation text."}


class Service:
    "A stand-in for the service: answers every request with `reply(number of the request)`."

    def __init__(self):
        self.requests, self.reply = [], lambda n: (200, json.dumps(GOOD))
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                service.requests.append((self.path, self.headers.get("x-goog-api-key"), body))
                status, text = service.reply(len(service.requests))
                answer = {"candidates": [{"content": {"role": "model", "parts": [{"text": text}]}, "finishReason": "STOP"}]}
                if status != 200: answer = {"error": {"code": status, "message": text, "status": "RESOURCE_EXHAUSTED"}}
                data = json.dumps(answer).encode()
                self.send_response(status); self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data))); self.end_headers(); self.wfile.write(data)

            def log_message(self, *args): pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def service(monkeypatch):
    pytest.importorskip("google.genai", reason='the extra "gemini" (google-genai) is not installed')
    for v in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "GOOGLE_API_KEY"): monkeypatch.delenv(v, raising=False)
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    s = Service()
    yield s
    s.server.shutdown(); s.server.server_close()


def test_a_draft_becomes_a_knowledge_file_that_says_what_it_is(service, tmp_path):
    out = tmp_path / "drafted.yaml"
    [draft] = D.describe(out, labels=["AVB1"], model="gemini-test", base_url=service.url)
    path, key, body = service.requests[0]
    assert "gemini-test:generateContent" in path and key == KEY
    assert body["contents"][0]["parts"][0]["text"] == D.draft_prompt("AVB1") == draft.prompt
    assert body["generationConfig"]["responseMimeType"] == "application/json" and body["generationConfig"]["temperature"] == 0
    drafted, shipped = K.load_knowledge(out), K.load_knowledge()
    assert drafted.texts(["AVB1"]) == [[GOOD[a] for a in K.AXES]] and drafted.texts(["LVH"]) == shipped.texts(["LVH"])
    entry = drafted.entries["AVB1", "rhythm"]
    assert entry.author == "gemini-test" and "nobody" in entry.review and "gemini-test on 20" in drafted.sources["draft_gemini-test"]
    record = json.loads((tmp_path / "drafted.yaml.jsonl").read_text())
    assert record["answer"] == json.dumps(GOOD) and record["model"] == "gemini-test" and record["date"].startswith("20") and record["prompt"] == draft.prompt
    assert not any(KEY in p.read_text() for p in tmp_path.iterdir())


def test_a_child_s_draft_replaces_one_age_band_only(service, tmp_path):
    D.describe(tmp_path / "d.yaml", labels=["AVB1"], population="1-3 y", base_url=service.url)
    drafted, shipped = K.load_knowledge(tmp_path / "d.yaml"), K.load_knowledge()
    assert "children of 1 to 3 years" in service.requests[0][2]["contents"][0]["parts"][0]["text"]
    assert drafted.texts(["AVB1"], "1-3 y")[0][1] == "Drafted QRS text."
    assert drafted.texts(["AVB1"]) == shipped.texts(["AVB1"]) and drafted.texts(["AVB1"], "3-5 y") == shipped.texts(["AVB1"], "3-5 y")


def test_an_interrupted_run_goes_on_and_asks_nothing_twice(service, tmp_path):
    texts = lambda n: json.dumps({a: f"Drafted text {'abc'[n - 1]} for the {a} axis." for a in K.AXES})
    service.reply = lambda n: (429, "quota") if n == 2 else (200, texts(n))
    with pytest.raises(PeaceError, match="draft of LVH.*429"): D.describe(tmp_path / "d.yaml", labels=["AVB1", "LVH"], base_url=service.url)
    assert not (tmp_path / "d.yaml").exists()
    D.describe(tmp_path / "d.yaml", labels=["AVB1", "LVH"], base_url=service.url)
    assert len(service.requests) == 3      # AVB1, the refused LVH, LVH again
    D.describe(tmp_path / "d.yaml", labels=["AVB1", "LVH"], base_url=service.url)
    assert len(service.requests) == 3
    assert K.load_knowledge(tmp_path / "d.yaml").texts(["LVH"])[0][0] == "Drafted text c for the rhythm axis."


@pytest.mark.parametrize("answer", ["not json", "{}", json.dumps(GOOD | {"extra": "x."}), json.dumps(GOOD | {"st_t": ""}),
                                    json.dumps(GOOD | {"st_t": "word " * 80 + "."}), json.dumps(GOOD | {"st_t": "A {placeholder}."}), json.dumps(GOOD | {"st_t": 5})])
def test_an_unusable_answer_is_refused_but_kept(service, tmp_path, answer):
    service.reply = lambda n: (200, answer)
    journal = tmp_path / "d.yaml.jsonl"
    for _ in range(2):   # the second time from the journal: nothing is asked, and paid, twice
        with pytest.raises(PeaceError, match="draft of AVB1.*delete its line") as e: D.describe(tmp_path / "d.yaml", labels=["AVB1"], base_url=service.url)
        assert "\n" not in str(e.value) and list(tmp_path.iterdir()) == [journal]
    record = json.loads(journal.read_text(encoding="utf-8"))
    assert record["answer"] == answer and record["texts"] == {} and len(service.requests) == 1
    journal.write_text(""); service.reply = lambda n: (200, json.dumps(GOOD))
    D.describe(tmp_path / "d.yaml", labels=["AVB1"], base_url=service.url)
    assert len(service.requests) == 2


def test_a_torn_journal_is_read_and_a_spoiled_one_named(service, tmp_path):
    out, journal = tmp_path / "d.yaml", tmp_path / "d.yaml.jsonl"
    service.reply = lambda n: (200, json.dumps({a: f"Drafted text {'abcd'[n - 1]} for the {a} axis." for a in K.AXES}))
    D.describe(out, labels=["AVB1", "LVH"], base_url=service.url)
    journal.write_bytes(journal.read_bytes()[:-30])
    with pytest.warns(UserWarning, match="last line is incomplete"): D.describe(out, labels=["AVB1", "LVH"], base_url=service.url)
    assert len(service.requests) == 3      # only the torn answer is asked for again
    D.describe(out, labels=["AVB1", "LVH"], base_url=service.url)
    assert len(service.requests) == 3 and len(journal.read_text(encoding="utf-8").splitlines()) == 2
    journal.write_text("nonsense\n" + journal.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(PeaceError, match="d.yaml.jsonl: line 1"): D.describe(out, labels=["AVB1"], base_url=service.url)


def test_no_key_no_request(service, tmp_path, monkeypatch):
    monkeypatch.delenv("GEMINI_API_KEY")
    with pytest.raises(PeaceError, match="GEMINI_API_KEY"): D.describe(tmp_path / "d.yaml", labels=["AVB1"], base_url=service.url)
    assert service.requests == [] and list(tmp_path.iterdir()) == []


def test_a_service_that_is_not_there(service, tmp_path):
    service.server.shutdown(); service.server.server_close()
    with pytest.raises(PeaceError, match="could not be reached") as e: D.describe(tmp_path / "d.yaml", labels=["AVB1"], base_url=service.url)
    assert KEY not in str(e.value)


def test_a_wrong_label_is_refused_before_anything_is_asked(service, tmp_path):
    with pytest.raises(PeaceError, match="LVHX"): D.describe(tmp_path / "d.yaml", labels=["AVB1", "LVHX"], base_url=service.url)
    assert service.requests == []


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, "google", None)
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    with pytest.raises(PeaceError, match=r"peace_nb\[gemini\]"): D.describe(tmp_path / "d.yaml", labels=["AVB1"])
