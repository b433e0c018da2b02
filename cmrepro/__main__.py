"""`python -m cmrepro`."""

from cmrepro.cli.main import main

if __name__ == "__main__":
    main()
