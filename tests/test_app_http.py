"""The demo over HTTP: a real server, hostile and clumsy clients."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import math
import struct
import threading
import time
import zlib

import httpx
import numpy as np
import pytest
from PIL import Image
from served import Server, Visitor

QUEUE = 8


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("server"), "--queue-size", str(QUEUE))
    yield made
    made.stop()


@pytest.fixture
def visitor(server):
    return Visitor(server)


def picture(seed=0, size=(40, 30)):
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def checksum(image):
    return hashlib.sha256(np.asarray(image.convert("RGB")).tobytes()).hexdigest()


def bomb(side):
    """A PNG of a few kB that unpacks to side x side pixels."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\0" * ((side + 7) // 8)) * side, 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def message(answer):
    """The message of a refusal, whatever its form; checks that it is short and tells no secret."""
    kind, payload = answer
    assert kind in ("error", "refused"), answer
    text = json.dumps(payload)
    assert len(text) < 500
    assert "Traceback" not in text
    assert "uploads/" not in text
    return text


def works(visitor):
    """The next ordinary request is fine."""
    kind, payload = visitor.ask(image=visitor.upload(encoded(picture(99))))
    assert kind == "complete", payload
    return payload


# ---------------------------------------------------------------------------------- pictures (1, 2)
_PNG, _JPEG = encoded(picture(1, (200, 200))), encoded(picture(1, (200, 200)), "JPEG")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("text.png", b"this is no picture"),
        ("cut.png", _PNG[: len(_PNG) // 2]),
        ("cut.jpg", _JPEG[: len(_JPEG) // 2]),
        ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>"),
        ("a.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        ("eps.png", encoded(picture(), "EPS")),
        ("ppm.png", encoded(picture(), "PPM")),
        ("psd.png", b"8BPS\0\1" + b"\0" * 60),
        ("fits.png", b"SIMPLE  =                    T" + b" " * 3000),
        ("icns.png", b"icns" + b"\0\0\0\x10" + b"ic07" + b"\0\0\0\x08"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_supported_picture_is_refused_with_a_reason(visitor, name, content):
    text = message(visitor.ask(image=visitor.upload(content, name)))
    assert "picture" in text or "export" in text
    works(visitor)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("name", ["a.png", "a.bin"])
def test_a_picture_is_read_by_its_content_whatever_its_name(visitor, kind, name):
    answer = visitor.ask(image=visitor.upload(encoded(picture(), kind), name))
    assert answer[0] == "complete", answer


def test_an_empty_file_is_refused(visitor):
    answer = visitor.http.post(f"{visitor.url}/upload", files={"files": ("a.png", b"")})
    if answer.status_code == 200:
        assert "empty" in message(visitor.ask(image=answer.json()[0]))
    else:
        assert answer.status_code in (400, 422)
    works(visitor)


def test_no_picture_is_refused(visitor):
    assert "picture first" in message(visitor.ask(image=None))


@pytest.mark.parametrize(
    ("kind", "image", "options"),
    [
        ("PNG", Image.new("RGB", (1, 1)), {}),
        ("PNG", Image.new("RGB", (1, 300)), {}),
        ("PNG", Image.new("RGB", (300, 1)), {}),
        ("PNG", Image.new("RGB", (8000, 20)), {}),
        ("PNG", Image.new("L", (30, 20)), {}),
        ("PNG", Image.new("LA", (30, 20)), {}),
        ("PNG", Image.new("P", (30, 20)), {}),
        ("PNG", Image.new("RGBA", (30, 20)), {}),
        ("PNG", Image.new("I;16", (30, 20)), {}),
        ("JPEG", Image.new("CMYK", (30, 20)), {}),
        ("WEBP", Image.new("RGB", (30, 20)), {}),
        ("MPO", Image.new("RGB", (30, 20)), {"append_images": [Image.new("RGB", (30, 20))],
                                             "save_all": True}),
    ],
    ids=lambda value: f"{value.mode}-{value.width}x{value.height}" if isinstance(value, Image.Image)
    else "",
)  # fmt: skip
def test_unusual_pictures_get_masks_of_their_own_size(visitor, kind, image, options):
    answer = visitor.ask(image=visitor.upload(encoded(image, kind, **options)))
    assert answer[0] == "complete", answer
    assert answer[1][1]["results"][0]["mask_rle"]["size"] == [image.height, image.width]


@pytest.mark.parametrize("turn", range(2, 9))
def test_masks_fit_the_upright_photo(visitor, turn):
    exif = Image.Exif()
    exif[274] = turn
    content = encoded(picture(0, (40, 24)), "JPEG", exif=exif)
    _, (_, record) = visitor.ask(image=visitor.upload(content, "photo.jpg"))
    upright = [40, 24] if turn >= 5 else [24, 40]
    assert record["results"][0]["mask_rle"]["size"] == upright


# ------------------------------------------------------------------------------------- bombs (3, 4)
def test_a_body_with_wrong_json_is_no_trouble(visitor):
    for body in (b"", b"[", b"null", b"7", b"{}", b'{"data": 3}', b"\xff\xfe", b"[" * 900_000):
        answer = visitor.http.post(f"{visitor.url}/call/ground", content=body)
        assert 400 <= answer.status_code < 500 or answer.status_code == 200
    works(visitor)


@pytest.mark.parametrize("side", [10_000, 13_000])
def test_a_bomb_is_refused_and_costs_no_memory(server, visitor, side):
    works(visitor)
    content = bomb(side)
    assert len(content) < 200_000
    path = visitor.upload(content)
    header = visitor.upload(content[:60])  # enough to know
    before = server.memory
    for file in (path, header):
        assert "megapixels" in message(visitor.ask(image=file))
    assert server.memory - before < 100e6


def test_a_bomb_inlined_as_a_data_url_is_refused(server, visitor):
    url = "data:image/png;base64," + base64.b64encode(bomb(10_000)).decode()
    before = server.memory
    for file in ({"url": url}, {"url": url, "path": "x.png"}, {"path": url}):
        message(visitor.ask(image={**file, "meta": {"_type": "gradio.FileData"}}))
    assert server.memory - before < 100e6
    works(visitor)


def test_a_body_of_20_megabytes_is_refused(visitor):
    url = "data:image/png;base64," + "A" * 20_000_000
    answer = visitor.ask(image={"url": url, "meta": {"_type": "gradio.FileData"}})
    assert answer[0] == "refused"
    assert answer[1][0] == 413
    works(visitor)


def test_a_body_without_a_stated_length_is_cut_off_too(server):
    def flood():
        for _ in range(400):
            yield b"x" * 100_000

    with httpx.Client(timeout=30) as client:
        try:
            answer = client.post(f"{server.url}/gradio_api/call/ground", content=flood())
            assert answer.status_code == 413
        except httpx.TransportError:
            pass  # the server hung up while the flood went on
    works(Visitor(server))


# -------------------------------------------------------------------------------------- phrases (5)
@pytest.mark.parametrize(
    ("phrases", "reason"),
    [
        ("", "Type what"),
        ("   \n ", "Type what"),
        (None, "text"),
        (5, "text"),
        ({"a": 1}, "text"),
        (["a cat", 3], "text"),
        ("?!…", "no word"),
        ("x" * 5000, "5000 characters"),
        ([f"cat {i}" for i in range(50)], "50 phrases"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_phrases_that_cannot_be_answered_are_refused(visitor, phrases, reason):
    image = visitor.upload(encoded(picture()))
    assert reason in message(visitor.ask(image=image, phrases=phrases))


@pytest.mark.parametrize(
    "phrase",
    [
        "x", "word " * 39, "🐈 cat", "القطة الحمراء", "红色的苹果", "<script>alert(1)</script>",
        "[a](http://b.c)", "<image> [SEG] <p> </p> <bbox> </s>",
    ],
    ids=lambda value: ascii(value)[:24],
)  # fmt: skip
def test_strange_phrases_are_answered_and_change_no_token_layout(visitor, phrase):
    image = visitor.upload(encoded(picture()))
    tokens = {}
    for budget in (16, 64):
        kind, payload = visitor.ask(image=image, phrases=phrase, budget=budget)
        assert kind == "complete", payload
        assert [r["phrase"] for r in payload[1]["results"]] == [" ".join(phrase.split())]
        tokens[budget] = payload[1]["llm_tokens"]
    assert tokens[64] - tokens[16] == 48


def test_several_phrases_come_as_lines_or_as_a_list(visitor):
    image = visitor.upload(encoded(picture()))
    lines = visitor.ask(image=image, phrases="a cat\na dog")[1][1]["results"]
    listed = visitor.ask(image=image, phrases=["a cat", "a dog"])[1][1]["results"]
    assert [r["mask_rle"] for r in lines] == [r["mask_rle"] for r in listed]
    assert len(lines) == 2


# --------------------------------------------------------------------------------------- budget (6)
@pytest.mark.parametrize(
    "budget",
    [math.nan, math.inf, -math.inf, 0, -1, 17.5, "192", "16", True, 65, 577, 1e9, [16], {}],
    ids=str,
)
def test_wrong_budgets_are_refused_by_the_same_rule(visitor, budget):
    image = visitor.upload(encoded(picture()))
    text = message(visitor.ask(image=image, budget=budget))
    assert "budget must be a whole number from 1 to 64" in text


@pytest.mark.parametrize(("budget", "kept"), [(1, 1), (16.0, 16), (63, 63), (64, 64), (None, 21)])
def test_right_budgets_are_kept_to(visitor, budget, kept):
    image = visitor.upload(encoded(picture()))
    _, (_, record) = visitor.ask(image=image, budget=budget)
    assert record["tokens_kept"] == kept


@pytest.mark.parametrize(
    ("name", "value"),
    [("method", "magic"), ("method", 3), ("split", "x"), ("split", 2), ("order", "x"),
     ("positions", "x"), ("context", "x"), ("text", "x"), ("mode", "x"), ("model", "x")],
)  # fmt: skip
def test_wrong_options_are_refused_with_what_is_known(visitor, name, value):
    image = visitor.upload(encoded(picture()))
    message(visitor.ask(image=image, **{name: value}))


# ---------------------------------------------------------------------------------------- files (8)
@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../../etc/passwd", "file:///etc/passwd", "http://127.0.0.1:1/x.png",
     "http://localhost/x.png", "http://169.254.169.254/latest/meta-data", "http://[::1]/x.png",
     "http://0.0.0.0/x.png", "//etc/passwd", "app.py"],
)  # fmt: skip
def test_files_of_the_server_and_its_network_are_out_of_reach(server, visitor, path):
    for file in ({"path": path}, {"path": path, "url": path}):
        answer = visitor.ask(image={**file, "meta": {"_type": "gradio.FileData"}})
        assert answer[0] in ("error", "refused")
    served = visitor.http.get(f"{server.url}/gradio_api/file={path}")
    assert served.status_code in (400, 403, 404)


def test_the_name_of_an_upload_cannot_lead_elsewhere(server, visitor):
    path = visitor.upload(encoded(picture()), "../../../evil.png")
    assert path.startswith(str(server.uploads))
    assert ".." not in path


def test_an_uploaded_page_is_not_shown_as_a_page(server, visitor):
    path = visitor.upload(b"<script>alert(1)</script>", "evil.html")
    answer = visitor.http.get(f"{server.url}/gradio_api/file={path}")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "html" not in answer.headers.get("content-type", "") or (
        "attachment" in answer.headers.get("content-disposition", "")
    )


def test_the_page_may_not_reach_other_hosts_and_other_sites_may_not_post(server, visitor):
    policy = visitor.http.get(server.url).headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http:" not in policy
    assert "https:" not in policy
    answer = visitor.http.post(
        f"{visitor.url}/call/ground", json={"data": []}, headers={"sec-fetch-site": "cross-site"}
    )
    assert answer.status_code == 403


# ---------------------------------------------------------------------------------------- load (15)
def test_twenty_visitors_at_once_get_their_own_picture_or_a_busy_answer(server):
    pictures = [picture(seed, (400, 300)) for seed in range(20)]
    visitors = [Visitor(server) for _ in range(20)]
    paths = [v.upload(encoded(p)) for v, p in zip(visitors, pictures, strict=True)]
    answers: dict = {}
    barrier = threading.Barrier(20)

    def call(number):
        barrier.wait()
        start = time.perf_counter()
        kind, payload = visitors[number].ask(image=paths[number], phrases=f"thing {number}")
        answers[number] = kind, payload, time.perf_counter() - start

    threads = [threading.Thread(target=call, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert len(answers) == 20
    done = {n: a for n, a in answers.items() if a[0] == "complete"}
    busy = {n: a for n, a in answers.items() if a[0] != "complete"}
    assert len(done) >= QUEUE
    for number, (_, payload, _) in done.items():
        assert payload[1]["image"]["sha256"] == checksum(pictures[number])
        assert payload[1]["results"][0]["phrase"] == f"thing {number}"
    slowest = max(seconds for _, _, seconds in done.values())
    for _, payload, seconds in busy.values():
        assert seconds < slowest  # told at once, not after waiting
        assert "full" in str(payload).lower() or "503" in str(payload)
    works(visitors[0])


# ----------------------------------------------------------------------------------- endurance (16)
def test_memory_files_and_handles_do_not_grow_with_requests(server, visitor):
    paths = [visitor.upload(encoded(picture(seed))) for seed in range(4)]

    def ask(count):
        for number in range(count):
            kind, payload = visitor.ask(image=paths[number % 4], budget=8 + number % 4)
            assert kind == "complete", payload

    ask(80)  # pools and caches fill up first
    memory, handles, files = server.memory, server.handles, len(server.files())
    ask(250)
    assert server.memory - memory < 40e6
    assert server.handles <= handles + 8
    assert len(server.files()) <= files + 16


# ------------------------------------------------------------------------------- leaving early (17)
def test_visitors_who_leave_in_the_middle_leave_nothing_behind(server, visitor):
    path = visitor.upload(encoded(picture(0, (800, 600))))
    data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, "a cat", 16, "litelvlm"]
    data += [None] * 5 + ["forced", None]
    for _ in range(5):
        leaver = Visitor(server)
        start = leaver.http.post(f"{leaver.url}/call/ground", json={"data": data})
        assert start.status_code in (200, 503)
        if start.status_code == 200:
            event = start.json()["event_id"]
            with leaver.http.stream("GET", f"{leaver.url}/call/ground/{event}"):
                pass
        leaver.http.close()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and visitor.ask(image=path)[0] != "complete":
        time.sleep(0.2)
    works(visitor)


# ------------------------------------------------------------------------------------- uploads (20)
def test_forty_files_in_one_request_are_refused_beyond_the_total(server, visitor):
    before = len(server.files())
    files = [("files", (f"{n}.bin", b"x" * 1_000_000)) for n in range(40)]
    answer = visitor.http.post(f"{visitor.url}/upload", files=files)
    assert answer.status_code == 413
    assert len(server.files()) == before


# --------------------------------------------------------------------------------- privacy (22, 23)
def test_the_log_names_no_phrase_and_no_upload(server, visitor):
    secret = "xylophone of my aunt"
    image = visitor.upload(encoded(picture()), "aunt-berta.png")
    assert visitor.ask(image=image, phrases=secret)[0] == "complete"
    visitor.ask(image=image, phrases=secret, budget=-1)
    visitor.ask(image=visitor.upload(b"junk", "aunt-berta2.png"), phrases=secret)
    log = server.log.read_text()
    assert "xylophone" not in log
    assert "aunt" not in log


def test_the_server_opens_no_connection_to_another_host(server, visitor):
    works(visitor)
    assert server.calls.read_text() == ""


def test_nothing_of_a_visit_is_recorded(server, visitor):
    config = visitor.http.get(f"{server.url}/config").json()
    assert not config.get("analytics_enabled")
    assert not config.get("run_history")
    assert not any(c["type"] == "flagging" for c in config["components"])


def test_the_page_refers_to_no_other_host(server, visitor):
    import re

    page = visitor.http.get(server.url).text
    head = page[: page.index("window.gradio_config")] if "window.gradio_config" in page else page
    loaded = re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(https?:[^"]+)"', head)
    assert [url for url in loaded if not url.startswith(server.url)] == []


# ----------------------------------------------------------------------------------- endpoints (25)
def test_exactly_three_endpoints_are_public(server, visitor):
    info = visitor.http.get(f"{visitor.url}/info").json()
    assert set(info["named_endpoints"]) == {"/ground", "/compare", "/sweep"}
    assert info["unnamed_endpoints"] == {}


def test_the_documented_parameters_are_those_of_the_endpoints(server, visitor):
    info = visitor.http.get(f"{visitor.url}/info").json()["named_endpoints"]
    names = [p["parameter_name"] for p in info["/ground"]["parameters"]]
    assert names[:4] == ["image", "phrases", "budget", "method"]
    assert all(not name.startswith("parameter_") for name in names)
    budget = next(p for p in info["/ground"]["parameters"] if p["parameter_name"] == "budget")
    assert '"maximum": 64' in json.dumps(budget)


def test_gradio_client_can_ground_compare_and_sweep(server, tmp_path):
    from gradio_client import Client, handle_file

    path = tmp_path / "p.png"
    picture().save(path)
    client = Client(server.url, verbose=False)
    overlay, record = client.predict(
        image=handle_file(str(path)), phrases="the disc", budget=16, api_name="/ground"
    )
    assert Image.open(overlay).size == (40, 30)
    assert Image.open(overlay).format == "PNG"
    assert record["tokens_kept"] == 16
    assert record["image"]["sha256"] == checksum(picture())

    _, compared = client.predict(
        image=handle_file(str(path)), phrases="the disc", budget=16, api_name="/compare"
    )
    stages = {row["stage"]: row for row in compared["pruned"]["measured"]}
    assert stages["llm_prefill"]["ms_min"] <= stages["llm_prefill"]["ms_median"]
    assert compared["unpruned"]["llm_tokens"] - compared["pruned"]["llm_tokens"] == 48
    assert len(compared["agreement_iou"]) == 1

    curves, swept = client.predict(
        image=handle_file(str(path)), phrases="the disc", api_name="/sweep"
    )
    assert Image.open(curves).format == "PNG"
    assert set(swept["curves"]) == {"litelvlm", "random", "grid"}
    assert [p["budget"] for p in swept["curves"]["grid"]] == [8, 16, 32]


def test_an_error_reaches_gradio_client_as_its_message(server, tmp_path):
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    path = tmp_path / "p.png"
    picture().save(path)
    with pytest.raises(AppError, match="budget must be a whole number from 1 to 64"):
        Client(server.url, verbose=False).predict(
            image=handle_file(str(path)), phrases="x", budget=0, api_name="/ground"
        )


# -------------------------------------------------------------- servers with other options (19, 20)
@pytest.fixture(scope="module")
def small_server(tmp_path_factory):
    """Deletes uploads after 6 seconds, takes 3 MB within that time."""
    made = Server(
        tmp_path_factory.mktemp("small"), "--keep-minutes", "0.1", "--disk-mb", "3",
        "--upload-mb", "1",
    )  # fmt: skip
    yield made
    made.stop()


def test_a_flood_of_uploads_is_stopped_and_deleted_again(small_server):
    visitor = Visitor(small_server)
    own = set(small_server.files())  # the example that the page opens with stays
    codes = [
        visitor.http.post(
            f"{visitor.url}/upload", files={"files": (f"{n}.bin", bytes([n]) * 900_000)}
        ).status_code
        for n in range(8)
    ]
    assert codes.count(200) == 3
    assert codes.count(503) == 5
    assert sum(file.stat().st_size for file in small_server.files()) < 4e6
    deadline = time.monotonic() + 40
    while set(small_server.files()) != own and time.monotonic() < deadline:
        time.sleep(0.2)
    assert set(small_server.files()) == own
    works(visitor)


def test_a_file_beyond_the_limit_is_refused(small_server):
    visitor = Visitor(small_server)
    answer = visitor.http.post(
        f"{visitor.url}/upload", files={"files": ("big.bin", b"x" * 1_500_000)}
    )
    assert answer.status_code == 413


@pytest.fixture(scope="module")
def locked_server(tmp_path_factory):
    """Asks for a password, and its model is not there."""
    folder = tmp_path_factory.mktemp("locked")
    made = Server(folder, "--auth", "ada:lovelace", model=str(folder / "no-such-model"))
    yield made
    made.stop()


def entered(server):
    visitor = Visitor(server)
    login = {"username": "ada", "password": "lovelace"}
    assert visitor.http.post(f"{server.url}/login", data=login).status_code == 200
    return visitor


def test_a_password_is_asked_for(locked_server):
    visitor = Visitor(locked_server)
    assert visitor.http.get(f"{locked_server.url}/config").status_code == 401
    assert visitor.http.post(f"{visitor.url}/call/ground", json={"data": []}).status_code == 401
    visitor = entered(locked_server)
    assert visitor.http.get(f"{locked_server.url}/config").status_code == 200


def test_without_weights_there_is_a_page_that_says_so(locked_server):
    visitor = entered(locked_server)
    page = visitor.http.get(locked_server.url)
    assert page.status_code == 200
    assert "cannot be loaded" in page.text
    text = message(visitor.ask(image=visitor.upload(encoded(picture()))))
    assert "unknown model" in text


# ------------------------------------------------------- nothing found, out of memory (7, 18)
# The language model runs out of memory while a file named "full" lies beside the server's log.
OUT_OF_MEMORY = """
import pathlib, torch
from litelvlm.models.language import LanguageModel
whole = LanguageModel.prefill
def prefill(self, sequences, *more):
    if (pathlib.Path(__file__).parent / "full").exists():
        raise torch.OutOfMemoryError("injected")
    return whole(self, sequences, *more)
LanguageModel.prefill = prefill
"""


def test_an_answer_without_a_mask_says_so_and_shows_no_older_mask(visitor):
    """A model with random weights writes no [SEG] when it may write what it likes."""
    image = visitor.upload(encoded(picture(7)))
    kind, before = visitor.ask(image=image)
    assert kind == "complete"
    kind, after = visitor.ask(image=image, mode="generate")
    assert kind == "complete"
    first, second = (
        next(part for part in payload if isinstance(part, dict) and "results" in part)
        for payload in (before, after)
    )
    assert first["results"][0]["found"]
    assert not second["results"][0]["found"]
    assert second["results"][0]["area_fraction"] == 0.0
    works(visitor)


@pytest.fixture(scope="module")
def faulty_server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("faulty"), fault=OUT_OF_MEMORY)
    yield made
    made.stop()


def test_out_of_memory_is_said_and_the_next_request_works(faulty_server):
    visitor = Visitor(faulty_server)
    works(visitor)
    (faulty_server.folder / "full").touch()
    text = message(visitor.ask(image=visitor.upload(encoded(picture(3)))))
    assert "out of memory" in text
    (faulty_server.folder / "full").unlink()
    works(visitor)


def test_after_kill_9_in_the_middle_of_a_run_it_starts_clean(faulty_server):
    visitor = Visitor(faulty_server)
    path = visitor.upload(encoded(picture(0, (900, 700))))
    threading.Thread(target=lambda: _quietly(visitor, path), daemon=True).start()
    time.sleep(0.1)
    faulty_server.kill()
    faulty_server.start()
    works(Visitor(faulty_server))


def _quietly(visitor, path):
    with contextlib.suppress(httpx.HTTPError):
        visitor.ask(image=path)
