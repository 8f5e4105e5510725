"""The demo, here and on Hugging Face Spaces; `python app.py --help` lists its options."""

import sys

from litelvlm.cli import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
