"""Open the demo: a page that shows what token pruning does to your pictures.

Environment: LITELVLM_MODEL (names, separated by commas) and LITELVLM_AUTH (user:password) stand
in for --model and --auth, for places without a command line.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
from dataclasses import fields

from litelvlm.cli.options import at_least_one
from litelvlm.errors import InputError

HELP = "open the demo in the browser"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    add = parser.add_argument
    add(
        "--model",
        action="append",
        metavar="NAME",
        help="model to answer with (default photo and nano): glamm-refseg, tiny-random, a folder "
        "or a hub id; repeat it to offer a choice",
    )
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps; default: the best there is")
    add("--dtype", metavar="NAME", help="float32, bfloat16, float16; default: the model's own")
    add("--host", default="127.0.0.1", help="address to listen on (default: this computer only)")
    add("--port", type=int, help="default: the first free port from 7860")
    add(
        "--queue-size",
        type=int,
        default=16,
        metavar="N",
        help="requests that may wait (default 16); more are told at once that the demo is busy",
    )
    add("--auth", metavar="USER:PASSWORD", help="ask visitors for this name and password")
    add("--mcp", action="store_true", help="also offer ground, compare and sweep as MCP tools")
    add(
        "--keep-minutes",
        type=float,
        default=20.0,
        metavar="M",
        help="delete uploads after this time (default 20)",
    )
    add(
        "--upload-mb",
        type=float,
        default=20.0,
        metavar="MB",
        help="largest upload (default 20)",
    )
    add(
        "--disk-mb",
        type=float,
        default=1000.0,
        metavar="MB",
        help="uploads taken within --keep-minutes, all visitors together (default 1000)",
    )
    add("--root-path", metavar="PATH", help="path under which a proxy shows the demo")
    add("--open", action="store_true", help="open the page in the browser")
    add("--verbose", action="store_true", help="log what the server does")


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted; return 0."""
    from litelvlm.ui.zero import prepare

    prepare()  # before anything imports torch
    settings = _settings(args)
    logging.basicConfig(level=logging.INFO if args.verbose else logging.WARNING)
    from litelvlm.ui.server import launch

    launch(settings)
    return 0


def _settings(args: argparse.Namespace):  # type: ignore[no-untyped-def]
    from litelvlm.ui.settings import Settings

    named = os.environ.get("LITELVLM_MODEL", "").split(",")
    models = (
        args.model or [name.strip() for name in named if name.strip()] or list(Settings().models)
    )
    auth = args.auth or os.environ.get("LITELVLM_AUTH")
    if auth is not None and not all(auth.partition(":")):
        raise InputError("--auth must be USER:PASSWORD")
    at_least_one(args, "queue_size")
    if args.port is not None and not 0 < args.port < 65536:
        raise InputError(f"--port must be in 1..65535, got {args.port}")
    for name in ("keep_minutes", "upload_mb", "disk_mb"):
        if not 0 < getattr(args, name) < float("inf"):
            raise InputError(f"--{name.replace('_', '-')} must be above 0")
    if args.mcp and importlib.util.find_spec("mcp") is None:
        raise InputError("--mcp needs one more package: pip install 'gradio[mcp]'")
    if args.mcp and auth is not None:
        raise InputError("--mcp does not go with --auth: tools cannot give a password")
    user, _, password = (auth or "").partition(":")
    own = {
        "models": tuple(dict.fromkeys(models)),
        "auth": (user, password) if auth else None,
        "open_browser": args.open,
    }
    names = {field.name for field in fields(Settings)} - set(own)
    return Settings(**own, **{name: value for name, value in vars(args).items() if name in names})
