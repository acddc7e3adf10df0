"""`python -m distillkit`: the same as the command `distillkit`."""

from .cli.main import main

if __name__ == "__main__":
    main()
