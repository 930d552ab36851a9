"""The pictures of docs/architecture.md, drawn from the code so that no picture can name what the code does not have.

`python -m scripts.pictures` writes them; a test compares the files with what the code gives.
"""
