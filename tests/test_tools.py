"""The endpoints as programs and language models see them: their schema, and the tools over MCP."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json

import cv2
import numpy as np
import pytest
from PIL import Image
from served import Server, Visitor
from test_app_http import bomb

pytest.importorskip("mcp", reason="gradio[mcp] is not installed")

# A run fails in a way nobody foresaw while a file named "broken" lies beside the server's log.
UNFORESEEN = """
import pathlib
from litelvlm.models.language import LanguageModel
whole = LanguageModel.prefill
def prefill(self, sequences, *more):
    if (pathlib.Path(__file__).parent / "broken").exists():
        raise RuntimeError("secret detail of " + __file__)
    return whole(self, sequences, *more)
LanguageModel.prefill = prefill
"""
# Part of the page -> the input of the endpoints that means the same.
ON_THE_PAGE = {
    "Token budget": "budget",
    "Method": "method",
    "Model": "model",
    "Split": "split",
    "Order": "order",
    "Positions": "positions",
    "Context score": "context",
    "CLIP reads": "text",
    "Answer": "mode",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("tools"), "--mcp", fault=UNFORESEEN)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def photo():
    return np.random.default_rng(3).integers(0, 255, (30, 40, 3), np.uint8)


@pytest.fixture(scope="module")
def inlined(photo):
    stream = io.BytesIO()
    Image.fromarray(photo).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def over_mcp(server, work):
    """Run `await work(session)` with an MCP session of the server."""
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    async def run():
        url = f"{server.url}/gradio_api/mcp/"
        async with streamablehttp_client(url) as (read, write, _), ClientSession(read, write) as s:
            await s.initialize()
            return await work(s)

    return asyncio.run(run())


def call(server, tool="ground", **given):
    return over_mcp(server, lambda session: session.call_tool(tool, given))


def answer(server, tool="ground", **given):
    """The picture, (H, W, 3), and the record of a call that must succeed."""
    done = call(server, tool, **given)
    assert not done.isError, done.content
    picture, record = done.content
    assert picture.type == "image"
    assert picture.mimeType == "image/png"
    pixels = Image.open(io.BytesIO(base64.b64decode(picture.data))).convert("RGB")
    return np.asarray(pixels), json.loads(record.text)


# ---------------------------------------------------------------------------------------- pictures
def test_a_tool_answers_with_the_picture_and_the_record_of_the_engine(server, photo, inlined, pipe):
    from litelvlm import viz

    drawn, record = answer(server, image=inlined, phrases="the disc\na wall", budget=16)
    mine = pipe.ground(pipe.encode(photo), ["the disc", "a wall"], 16)
    expected = viz.compose(photo, viz.mask_layer([item.mask for item in mine]))
    assert np.array_equal(drawn, expected)
    assert [r["mask_rle"] for r in record["results"]] == [item.mask_rle for item in mine]
    assert record["image"]["sha256"] == hashlib.sha256(photo.tobytes()).hexdigest()


def test_a_tool_left_to_its_defaults_answers_as_the_page_does(server, photo, inlined, pipe):
    _, record = answer(server, image=inlined, phrases="the disc")
    (mine,) = pipe.ground(pipe.encode(photo), "the disc", 21)  # where the page's slider stands
    assert record["results"][0]["mask_rle"] == mine.mask_rle


def test_compare_shows_both_answers_and_their_agreement(server, photo, inlined, pipe):
    drawn, record = answer(server, "compare", image=inlined, phrases="the disc", budget=16)
    scene = pipe.encode(photo)
    (few,), (every,) = pipe.ground(scene, "the disc", 16), pipe.ground(scene, "the disc")
    union = (few.mask | every.mask).sum()
    assert record["agreement_iou"] == [pytest.approx((few.mask & every.mask).sum() / union)]
    assert drawn.std() > 30, "two pictures of noise, not an empty canvas"


def test_sweep_draws_litelvlm_and_the_methods_asked_for(server, photo, inlined, pipe):
    given = {"image": inlined, "phrases": "the disc", "methods": "context, most-similar"}
    drawn, record = answer(server, "sweep", **given)
    assert list(record["curves"]) == ["litelvlm", "context", "most-similar"]
    scene = pipe.encode(photo)
    (few,) = pipe.ground(scene, "the disc", 16, method="context")
    (every,) = pipe.ground(scene, "the disc")
    told = {p["budget"]: p["agreement_iou"] for p in record["curves"]["context"]}
    assert told[16] == pytest.approx((few.mask & every.mask).sum() / (few.mask | every.mask).sum())
    assert len(np.unique(cv2.cvtColor(drawn, cv2.COLOR_RGB2GRAY))) > 10


# ---------------------------------------------------------------------------------------- mistakes
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"budget": 0}, "budget must be a whole number from 1 to 64, got 0"),
        ({"budget": "many"}, "budget must be a whole number from 1 to 64, got 'many'"),
        ({"method": "magic"}, "unknown method 'magic'"),
        ({"order": "sideways"}, "order must be one of raster, released"),
        ({"phrases": "?"}, "There is no word in “?”"),
        ({"phrases": None}, "Phrases are text"),
        ({"image": None}, "Choose a picture first."),
        ({"image": "photo.jpg"}, "image must be a data: URL"),
        ({"image": "file:///etc/passwd"}, "image must be a data: URL"),
        ({"image": "data:image/png;base64,A"}, "image must be a data: URL"),
        ({"image": "data:image/png;base64,AAAA"}, "not a picture that is known"),
        ({"image": "http://127.0.0.1:1/x.png"}, "from which anyone may fetch it"),
        ({"image": "http://169.254.169.254/x.png"}, "from which anyone may fetch it"),
        ({"model": "gpt"}, "This demo has no model “gpt”"),
        ({"budgets": 3}, "ground has no input 'budgets'; it takes image, phrases, budget"),
    ],
    ids=str,
)
def test_a_mistake_is_answered_with_one_sentence(server, inlined, change, told):
    done = call(server, **({"image": inlined, "phrases": "the disc", "budget": 16} | change))
    assert done.isError
    (part,) = done.content
    assert told in part.text
    assert "\n" not in part.text
    assert "Traceback" not in part.text


def test_a_bomb_is_refused(server):
    image = "data:image/png;base64," + base64.b64encode(bomb(10_000)).decode()
    done = call(server, image=image, phrases="the disc")
    assert done.isError
    assert "megapixels" in done.content[0].text


def test_an_unknown_tool_is_answered_with_those_there_are(server):
    done = call(server, "paint")
    assert done.isError
    assert done.content[0].text == "no tool 'paint'; there are ground, compare, sweep"


def test_a_failure_nobody_foresaw_tells_no_detail_and_the_next_call_works(server, inlined):
    (server.folder / "broken").touch()
    done = call(server, image=inlined, phrases="the disc")
    (server.folder / "broken").unlink()
    assert done.isError
    assert [part.text for part in done.content] == [
        "This run failed on our side. Try again, or another picture or phrase."
    ]
    answer(server, image=inlined, phrases="the disc")


# ------------------------------------------------------------------------------------------ schema
def unions(schema):
    """Where a schema allows several types."""
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key in ("anyOf", "oneOf", "allOf") or (key == "type" and isinstance(value, list)):
                yield schema
            yield from unions(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from unions(value)


def test_every_input_has_one_type_and_the_default_of_the_page(server):
    visitor = Visitor(server)
    page = visitor.http.get(f"{server.url}/config").json()["components"]
    shown = {
        ON_THE_PAGE[part["props"].get("label")]: part["props"]["value"]
        for part in page
        if part["props"].get("label") in ON_THE_PAGE
    }
    assert set(shown) == set(ON_THE_PAGE.values())
    endpoints = visitor.http.get(f"{visitor.url}/info").json()["named_endpoints"]
    tools = {tool["name"]: tool for tool in visitor.http.get(f"{visitor.url}/mcp/schema").json()}
    for name, endpoint in endpoints.items():
        tool = tools[name.strip("/")]["inputSchema"]
        assert tool["required"] == ["image", "phrases"]
        for given in endpoint["parameters"]:
            label = given["parameter_name"]
            for schema in (given["type"], tool["properties"][label]):
                assert isinstance(schema["type"], str), label
                assert not list(unions(schema)), label
            assert given["parameter_has_default"] == (label not in tool["required"])
            if label in shown:
                assert given["parameter_default"] == shown[label]
                assert tool["properties"][label]["default"] == shown[label]
                assert (
                    type(shown[label]).__name__
                    == given["python_type"]["type"].replace("Literal", "str").partition("[")[0]
                )


def test_the_tools_are_exactly_the_endpoints_and_tell_their_bounds(server):
    listed = over_mcp(server, lambda session: session.list_tools()).tools
    assert {tool.name for tool in listed} == {"ground", "compare", "sweep"}
    for tool in listed:
        text = json.dumps(tool.model_dump(mode="json"))
        assert "at most 200 characters" in text
        if tool.name != "sweep":
            assert "from 1 to the model's total" in text
            assert '"maximum": 64' in text
