"""The page at ``/``: who gets it, what it is made of, and what neither it nor a request for it can do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

import sglite as sgl
from sglite.runtime.serve import playground
from sglite.runtime.serve.app import create_app
from sglite.runtime.serve.options import ServeOptions
from sglite.runtime.serve.playground import FILES, PLAIN, POLICY, Playground

FOLDER = Path(playground.__file__).parent / "static"
SCRIPTS = sorted(FOLDER.glob("*.js"))
BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


def client(**options: bool) -> TestClient:
    app = FastAPI()
    for route in Playground(ServeOptions(**options)).routes():
        app.add_api_route(route.path, route.handler, methods=list(route.methods), response_model=None)
    return TestClient(app)


@pytest.fixture(scope="module")
def http() -> Iterator[TestClient]:
    with client() as http:
        yield http


# --- who gets what ----------------------------------------------------------------------------------------------


def test_a_browser_gets_the_page_and_everything_else_a_line(http: TestClient) -> None:
    page = http.get("/", headers=BROWSER)
    assert page.headers["content-type"] == "text/html; charset=utf-8" and "<main>" in page.text
    for accept in ("*/*", "application/json", "text/plain", ""):
        line = http.get("/", headers={"Accept": accept})
        assert line.text == PLAIN and line.headers["content-type"].startswith("text/plain")
        assert line.headers["vary"] == "Accept"
    assert page.headers["vary"] == "Accept"
    assert http.head("/").status_code == 200


def test_switched_off_there_is_only_the_line() -> None:
    with client(playground=False) as http:
        assert http.get("/", headers=BROWSER).text == PLAIN
        assert {http.get(f"/playground/{name}").status_code for name in FILES} == {404}


def test_each_file_is_served_as_what_it_is_and_once(http: TestClient) -> None:
    for path, name, kind in [("/", "index.html", "text/html"), *((f"/playground/{n}", n, k) for n, k in FILES.items())]:
        got = http.get(path, headers=BROWSER)
        assert got.content == (FOLDER / name).read_bytes(), name
        assert got.headers["content-type"].split(";")[0] == kind
        assert got.headers["cache-control"] == "no-cache" and got.headers["x-content-type-options"] == "nosniff"
        for tag in (got.headers["etag"], "W/" + got.headers["etag"], f'"x", {got.headers["etag"]}'):
            again = http.get(path, headers={**BROWSER, "If-None-Match": tag})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", got.headers["etag"])
        assert http.get(path, headers={**BROWSER, "If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    "path",
    ["", "/", "/index.html", "/../playground.py", "/%2e%2e/playground.py", "/..%2fplayground.py", "/%00"],
)
def test_nothing_else_is_served(http: TestClient, path: str) -> None:
    assert http.get("/playground" + path).status_code == 404


def test_where_a_key_is_set_the_page_is_open_and_the_model_is_not(engine: sgl.Engine) -> None:
    with TestClient(create_app(engine, ServeOptions(api_key="a key")), base_url="http://127.0.0.1") as http:
        page = http.get("/", headers=BROWSER)
        assert page.status_code == 200 and page.headers["content-security-policy"] == POLICY
        assert {http.get(f"/playground/{name}").status_code for name in FILES} == {200}
        assert http.get("/v1/models").status_code == 401


# --- what it is made of -----------------------------------------------------------------------------------------


class Tags(HTMLParser):
    """The elements of the page with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed((FOLDER / "index.html").read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def ids(self) -> set[str | None]:
        return {attributes["id"] for _, attributes in self.found if "id" in attributes}


def test_every_file_is_listed_and_every_reference_leads_to_one() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {*FILES, "index.html"}
    named = {attributes.get("src") or attributes.get("href") for _, attributes in Tags().found} - {None}
    assert named - {"#prompt"} <= {f"playground/{name}" for name in FILES}
    for path in SCRIPTS:
        imported = set(re.findall(r'from "\./([^"]+)"', path.read_text(encoding="utf-8")))
        assert imported <= FILES.keys(), path.name
    used = {name for path in SCRIPTS for name in re.findall(r'\bat\("([\w-]+)"\)', path.read_text(encoding="utf-8"))}
    assert used <= Tags().ids()


def test_it_comes_with_the_package() -> None:
    project = (Path(sgl.__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert '"runtime/serve/static/*"' in project


def test_nothing_is_fetched_from_elsewhere() -> None:
    for path in FOLDER.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|[\"'(]//|@import|url\(", text), path.name


def test_there_is_no_code_in_the_markup() -> None:
    for tag, attributes in Tags().found:
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
        assert tag != "style" and (tag != "script" or attributes.get("src")), (tag, attributes)


def test_the_policy_allows_no_code_but_the_files_and_no_markup_from_text() -> None:
    rules = dict(rule.split(" ", 1) for rule in POLICY.split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == rules["frame-ancestors"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert rules["require-trusted-types-for"] == "'script'" and rules["trusted-types"] == "'none'"
    assert "unsafe" not in POLICY and "*" not in POLICY


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_no_script_makes_markup_or_code_of_text_or_keeps_things(path: Path) -> None:
    sinks = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|\bFunction\(|srcdoc|DOMParser"
    bad = sinks + r"|localStorage|indexedDB|cookie"
    assert re.findall(bad, path.read_text(encoding="utf-8")) == []


def test_every_field_has_a_label_and_every_button_a_name() -> None:
    found = Tags().found
    labelled = {attributes.get("for") for tag, attributes in found if tag == "label"}
    fields = [attributes for tag, attributes in found if tag in ("input", "select", "textarea")]
    assert fields and {attributes["id"] for attributes in fields} - labelled == {
        "parallel"
    }  # That one is inside of it.
    assert all(attributes.get("type") for tag, attributes in found if tag == "button")
