"""`python -m litelvlm`: the same as the `litelvlm` command."""

from litelvlm.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
