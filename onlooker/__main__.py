"""`python -m onlooker`: the command line where its script is not on the path."""

from onlooker.cli import main

if __name__ == "__main__":
    main()
