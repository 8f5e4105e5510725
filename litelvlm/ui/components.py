"""Gradio components that pass input on unchanged, so that one set of checks decides about it."""

from __future__ import annotations

from typing import Any

import gradio as gr


class Picture(gr.Image):
    """An image input that hands over the path of the upload without opening it.

    Gradio's own decoding fails without a reason a visitor could read, and takes pictures inlined
    into a request past the limit on uploads; those are refused here.
    """

    is_template = True  # drawn by the page as gr.Image

    def preprocess(self, payload: Any) -> str | None:
        """The path of the upload, None without one."""
        if payload is None:
            return None
        if payload.path is None or str(payload.url or "").startswith("data:"):
            raise gr.Error(
                "Upload the picture first; data: URLs are not taken.", print_exception=False
            )
        return str(payload.path)

    def api_info(self) -> dict[str, Any]:
        """JSON schema of a file record, without what programs never send."""
        meta = {"type": "object", "default": {"_type": "gradio.FileData"}}
        return {
            "type": "object",
            "properties": {"path": {"type": "string"}, "meta": meta},
            "additional_description": "an upload: its path on the server",
        }


class Raw(gr.Textbox):
    """An input for programs: any JSON value, checked by the endpoint itself.

    Args:
        value: where none is sent, of any type; None for "must be sent".
        label: name of the parameter.
        kind: JSON schema of the value, with its bounds.
        example: a value that works.
    """

    is_template = True

    # Gradio hands out what its own arguments are called; so these keep its names.
    def __init__(
        self, value: Any = None, *, label: str, kind: dict[str, Any], example: Any = None
    ) -> None:
        self.kind = kind
        self.example = example
        super().__init__(value=value, label=label)

    def preprocess(self, payload: Any) -> Any:
        """The value as sent."""
        return payload

    def postprocess(self, value: Any) -> Any:
        """The value as it is."""
        return value

    def api_info(self) -> dict[str, Any]:
        """JSON schema of the value."""
        return self.kind

    def example_payload(self) -> Any:
        """A value that works."""
        return self.example

    def example_value(self) -> Any:
        """A value that works."""
        return self.example


class Budget(gr.Slider):
    """A slider whose value is checked by the callback, NaN and strings included."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        """The value as sent."""
        return payload


class Choice(gr.Radio):
    """A choice whose options change while a visitor looks at it; the callback checks the value."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        """The value as sent."""
        return payload
