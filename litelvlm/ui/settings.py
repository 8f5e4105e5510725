"""What can be set when the demo is started."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Options of the demo.

    Attributes:
        models: names or folders as `litelvlm.load` takes them; the first answers at start, the
            others are loaded when a visitor chooses them.
        device: "cpu", "cuda", ...; None for the best there is.
        dtype: of the weights; None for the model's own.
        host, port: where the server listens; port None takes the first free one from 7860.
        queue_size: requests that may wait; more are told at once that the demo is busy.
        auth: (user, password) that the page asks for, or None.
        mcp: also offer the endpoints as tools over MCP.
        keep_minutes: uploads and results are deleted after this time.
        upload_mb: largest upload, megabytes.
        disk_mb: uploads accepted within `keep_minutes`, megabytes, all visitors together.
        sessions: visitors whose encoded picture is held; the oldest is forgotten first.
        root_path: path under which a proxy shows the demo.
        open_browser: open the page on this computer.
    """

    models: tuple[str, ...] = ("photo", "nano")
    device: str | None = None
    dtype: str | None = None
    host: str = "127.0.0.1"
    port: int | None = None
    queue_size: int = 16
    auth: tuple[str, str] | None = None
    mcp: bool = False
    keep_minutes: float = 20.0
    upload_mb: float = 20.0
    disk_mb: float = 1000.0
    sessions: int = 48
    root_path: str | None = None
    open_browser: bool = False
