"""`python -m cmrepro`."""

from cmrepro.cli import main

if __name__ == "__main__":
    main()
