"""The demo: a page that shows what token pruning does to your picture, beside the unpruned run.

Reading order:

    settings.py    what can be set when the demo is started
    limits.py      what a visitor may send;  guard.py  what reaches the server at all
    work.py        picture + question -> records, with the pipeline; no drawing, no Gradio
    desk.py        the models of one demo;  zero.py  GPUs lent call by call
    pictures.py    layers as data URLs;  charts.py  small SVG charts
    panels.py      records -> HTML, one function a tab
    callbacks.py   what happens on a click: plain functions
    api.py         the three endpoints for programs;  tools.py  the same over MCP
    page.py        which components there are, and which callback each is tied to
    server.py      build, warm up, launch

Only `components.py`, `page.py`, `style.py`, `api.py`, `tools.py` and `server.py` import Gradio.
"""
