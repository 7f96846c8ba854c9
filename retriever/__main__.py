"""`python -m retriever`: the same as the command `retriever`."""

from retriever.cli import main

main()
