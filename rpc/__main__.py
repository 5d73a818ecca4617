"""`python -m rpc`: the same as the command `rpc`."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="rpc")
